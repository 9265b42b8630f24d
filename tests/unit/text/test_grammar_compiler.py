"""Masks over a real vocabulary: what a grammar allows is what comes out, byte for byte."""

import json
import re
from pathlib import Path
from random import Random

import numpy as np
import pytest

from penstock.engine.locate import embedded_models
from penstock.errors import GrammarLimitError, InvalidRequestError
from penstock.request import GrammarSpec
from penstock.text.grammar_compiler import GrammarCompiler, GrammarMatcher, most_bytes
from penstock.text.grammar_tokens import vocabulary_of
from penstock.text.tokenizer import Tokenizer

FIXTURES = Path(__file__).parents[2] / "fixtures" / "tokenizers"
TINY = Tokenizer.load(embedded_models()["penstock-tiny"], 8192)
EOS = (1, 7)
COMPILER = GrammarCompiler(vocabulary_of(TINY, 8196, EOS), lambda text: TINY.encode(text, add_special=False))
SPECIALS = set(range(32))


def ids_of(mask: np.ndarray) -> list[int]:
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()


def write(
    matcher: GrammarMatcher, random: Random, tokenizer: Tokenizer = TINY, limit: int = 400
) -> str | None:
    """A text that the masks allow, drawn by chance; None where it grew too long."""
    tokens: list[int] = []
    while not matcher.is_complete:
        allowed = ids_of(matcher.mask())

        assert allowed, matcher.error
        ends = [token for token in allowed if token in EOS]
        if ends and (len(ends) == len(allowed) or random.random() < 0.3):
            break
        tokens.append(random.choice([token for token in allowed if token not in EOS]))

        assert tokens[-1] not in SPECIALS
        assert matcher.accept(tokens[-1:]) == 1
        if len(tokens) == limit:
            return None
    return TINY.decode(tokens, skip_special=False)


@pytest.mark.parametrize(
    "spec, pattern",
    [
        (GrammarSpec("regex", "[0-9]{3}-[a-f]{2,4}"), "[0-9]{3}-[a-f]{2,4}"),
        (GrammarSpec("regex", r"^x[^y]{0,3}$"), r"x[^y]{0,3}"),
        (
            GrammarSpec("choice", json.dumps(['a "q" \\ b', "é\n🙂", "(x|y)*"])),
            r'a "q" \\ b|é\n🙂|\(x\|y\)\*',
        ),
        (
            GrammarSpec("lark", 'start: "f(" ARG ("," ARG)* ")"\nARG: /[a-z]{1,3}/'),
            r"f\([a-z]{1,3}(,[a-z]{1,3})*\)",
        ),
        (GrammarSpec("ebnf", 'root ::= "x" [0-9]+ tail\ntail ::= "!" | "?"'), r"x[0-9]+[!?]"),
    ],
)
def test_every_text_that_the_masks_allow_matches(spec: GrammarSpec, pattern: str) -> None:
    random = Random(str(spec))
    texts = [write(COMPILER.compile(spec), random) for _ in range(25)]

    assert sum(text is not None for text in texts) > 5
    for text in texts:
        assert text is None or re.fullmatch(pattern, text, re.DOTALL), text


def test_every_text_of_a_schema_is_json_that_fits_it() -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 5},
            "size": {"type": "integer", "minimum": 3, "maximum": 12},
            "tags": {"type": "array", "items": {"enum": ["a", "b", None]}, "maxItems": 3},
        },
        "required": ["name", "size", "tags"],
        "additionalProperties": False,
    }
    random = Random(1)
    for _ in range(20):
        text = write(COMPILER.compile(GrammarSpec("json_schema", json.dumps(schema))), random)
        if text is None:
            continue
        value = json.loads(text)

        assert list(value) == ["name", "size", "tags"]
        assert len(value["name"]) <= 5
        assert 3 <= value["size"] <= 12
        assert set(value["tags"]) <= {"a", "b", None}


def test_recursive_schemas_and_any_object_are_json() -> None:
    tree = {
        "type": "object",
        "properties": {"child": {"$ref": "#"}, "n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    random = Random(2)
    for spec in (GrammarSpec("json_schema", json.dumps(tree)), GrammarSpec("json_object")):
        texts = [write(COMPILER.compile(spec), random, limit=120) for _ in range(20)]
        for text in texts:
            assert text is None or isinstance(json.loads(text), dict)


@pytest.mark.parametrize(
    "name", ["byte_level_gpt2", "byte_level_llama3", "sentencepiece_llama2", "unigram_t5"]
)
def test_other_tokenizers_spell_what_the_grammar_says(name: str) -> None:
    tokenizer = Tokenizer.load(FIXTURES / name, 10_000)
    eos = tokenizer.eos_token_id or 1
    vocabulary = vocabulary_of(tokenizer, tokenizer.vocab_size + 5, [eos])
    compiler = GrammarCompiler(vocabulary, lambda text: tokenizer.encode(text, add_special=False))
    random = Random(name)
    odd = "x" if name.startswith("unigram") else "é"  # which that one has no token for
    num_texts = 0
    for _ in range(10):
        matcher = compiler.compile(GrammarSpec("regex", f"[a-e]{{2,9}}, {odd}{{1,2}}(one|two)"))
        tokens: list[int] = []
        while not matcher.is_complete and len(tokens) < 60:
            allowed = [token for token in ids_of(matcher.mask()) if token != eos]
            tokens.append(random.choice(allowed))

            assert matcher.accept(tokens[-1:]) == 1
        num_texts += 1

        assert b"".join(vocabulary.tokens[token] for token in tokens).decode() == tokenizer.decode(tokens)
    assert num_texts == 10


def test_word_pieces_cannot_be_held_to_a_grammar() -> None:
    with pytest.raises(InvalidRequestError, match="byte by byte"):
        vocabulary_of(Tokenizer.load(FIXTURES / "wordpiece_bert", 10_000), 10_000, [0])


def test_specials_are_no_text_and_the_end_is_allowed_only_where_the_text_is_whole() -> None:
    matcher = COMPILER.compile(GrammarSpec("regex", "(.|\n){2,9}"))
    a = TINY.token_id("a")
    assert a is not None

    assert not set(ids_of(matcher.mask())) & (SPECIALS | set(range(8192, 8196)))
    matcher.accept([a, a])
    assert set(ids_of(matcher.mask())) & SPECIALS == set(EOS)


def test_a_matcher_is_taken_back_token_by_token() -> None:
    matcher = COMPILER.compile(GrammarSpec("regex", "ab|cd"))
    a, b, c = (TINY.token_id(letter) or 0 for letter in "abc")
    first = ids_of(matcher.mask())

    assert matcher.accept([a, c, b]) == 1
    assert matcher.accept([b]) == 1
    assert matcher.is_complete
    matcher.roll_back(2)
    assert ids_of(matcher.mask()) == first
    assert not matcher.is_complete


@pytest.mark.parametrize(
    "spec, error",
    [
        (GrammarSpec("regex", "[a-z"), InvalidRequestError),
        (GrammarSpec("regex", "(?=a)b"), InvalidRequestError),
        (GrammarSpec("lark", "start: nowhere"), InvalidRequestError),
        (GrammarSpec("lark", "start: start"), InvalidRequestError),
        (GrammarSpec("lark", "start: " + "(" * 5_000 + '"a"' + ")" * 5_000), InvalidRequestError),
        (GrammarSpec("ebnf", "root ::= ((("), InvalidRequestError),
        (GrammarSpec("ebnf", "root ::= " + "(" * 5_000 + '"a"' + ")" * 5_000), InvalidRequestError),
        (GrammarSpec("ebnf", 'x ::= "a"'), InvalidRequestError),
        (GrammarSpec("json_schema", '{"type":"integer","minimum":5,"maximum":3}'), InvalidRequestError),
        (GrammarSpec("json_schema", '{"type":"string","format":"zork"}'), InvalidRequestError),
        (GrammarSpec("json_schema", '{"type":"integer","multipleOf":829348951}'), GrammarLimitError),
    ],
    ids=lambda value: str(getattr(value, "text", value))[:30],
)
def test_what_cannot_be_compiled_is_refused_in_one_line(
    spec: GrammarSpec, error: type[InvalidRequestError]
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        COMPILER.compile(spec, param="response_format")

    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("response_format")


def run_out_of_fuel() -> tuple[GrammarMatcher, int]:
    """A matcher of a grammar with endlessly many states, and after how many tokens it gave up."""
    matcher, random = COMPILER.compile(GrammarSpec("regex", "(.*a.{12})+!")), Random(1)
    a, b = (TINY.token_id(letter) or 0 for letter in "ab")
    num_tokens = 0
    while matcher.mask().any() and num_tokens < 3_000:
        assert matcher.accept([random.choice((a, b))]) == 1
        num_tokens += 1
    return matcher, num_tokens


@pytest.mark.slow
def test_a_matcher_beyond_its_fuel_allows_nothing_and_its_cost_is_its_own() -> None:
    """Not even the end, which the library would allow in mid-text."""
    matcher, num_tokens = run_out_of_fuel()

    assert 0 < num_tokens < 3_000
    assert "too many states" in matcher.error
    assert matcher.accept([100]) == 0
    assert not matcher.is_complete
    assert run_out_of_fuel()[1] == num_tokens


def test_a_grammar_is_counted_by_its_text_up_to_the_limit() -> None:
    assert most_bytes(GrammarSpec("json_object")) == 4 << 20
    assert most_bytes(GrammarSpec("lark", "x" * 65_536)) == 36_962_304
    assert most_bytes(GrammarSpec("lark", "x" * 650_536)) == 64 << 20
