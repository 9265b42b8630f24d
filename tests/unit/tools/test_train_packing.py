"""Rows of training: reproducible at any step, only answers learned, gaps that can be closed again."""

import ast
import json
import random
from dataclasses import replace
from itertools import islice

import jinja2
import numpy as np
import pytest
from tokenizers import Tokenizer
from tools.train import tokenizer as names
from tools.train.examples import Turn, chat_turns, functions, gaps
from tools.train.packing import IGNORED, Packer, in_order, window
from tools.train.recipe import Stage
from tools.train.sources import Document

MODULE = '''\
import os


def area(width, height=2):
    """Return the area of a rectangle.

    Both sides are numbers.
    """
    result = width * height
    return result


class Shape:
    def undocumented(self):
        return 1

    def perimeter(self, width, height):
        """Return the length of the border of a rectangle."""
        return 2 * (width + height)
'''
MIXED = Stage("mixed", 8, rows_per_step=2, row_tokens=32, code=1.0, prose=0.5, chat=1.0, fim=1.0)


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    code = [Document(f"stdlib/m{number}.py", "code", f"{MODULE}\n# {number}\n") for number in range(6)]
    return [*code, *(Document(f"docs/p{n}.rst.txt", "prose", f"Page {n} explains. " * 9) for n in range(4))]


@pytest.fixture(scope="module")
def tokenizer(documents: list[Document]) -> Tokenizer:
    return names.train_tokenizer(documents, vocab_size=420)


@pytest.fixture(scope="module")
def packer(tokenizer: Tokenizer, documents: list[Document]) -> Packer:
    return Packer(tokenizer, documents, MIXED, seed=3)


def test_special_tokens_take_the_first_ids_in_their_order(tokenizer: Tokenizer) -> None:
    assert [tokenizer.id_to_token(number) for number in range(32)] == list(names.SPECIAL_TOKENS)


@pytest.mark.parametrize(
    "text", ["", "x = 1\n\t\r\n", "naïve 数学 🙂\x00\u200d", "    if a:\n        b\n\n\n", "1234567"]
)
def test_every_text_round_trips(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


def test_a_run_that_starts_at_step_n_sees_what_an_unbroken_run_sees(packer: Packer) -> None:
    whole = list(islice(packer.batches(0), 60))
    resumed = list(islice(packer.batches(41), 19))

    assert all(
        np.array_equal(a, b)
        for pair in zip(whole[41:], resumed, strict=True)
        for a, b in zip(*pair, strict=True)
    )


def test_another_seed_gives_other_rows(
    tokenizer: Tokenizer, documents: list[Document], packer: Packer
) -> None:
    other = Packer(tokenizer, documents, MIXED, seed=4)

    assert not np.array_equal(packer.epoch_rows(0)[0][0], other.epoch_rows(0)[0][0])


def test_no_document_comes_again_before_all_were_shown(documents: list[Document]) -> None:
    ordered = in_order(documents, seed=5)
    shown = [one.path for part in range(4) for one in window(ordered, 0.25, 0.25 * part)]

    assert sorted(shown) == sorted(document.path for document in documents)
    assert window(ordered, 0.5, 0.8) == [*ordered[-2:], *ordered[:3]]
    assert len(window(ordered, 2.5, 0.0)) == 25


def test_what_other_documents_are_there_does_not_change_the_order(documents: list[Document]) -> None:
    ordered = in_order(documents, seed=5)

    assert in_order(documents[:6], seed=5) == [one for one in ordered if one in documents[:6]]
    assert in_order(documents, seed=6) != ordered


def test_functions_are_shown_alone_and_end(tokenizer: Tokenizer, documents: list[Document]) -> None:
    stage = replace(MIXED, code=0.0, prose=0.0, chat=0.0, fim=0.0, functions=1.0)
    rows, _ = Packer(tokenizer, documents, stage, seed=3).epoch_rows(0)
    text = tokenizer.decode(list(rows.flatten()), skip_special_tokens=False)

    assert "def perimeter(self" in text
    assert "<|begin|>def " in text
    assert "import os" not in text


def test_a_target_is_the_next_token_or_not_learned(packer: Packer) -> None:
    tokens, targets = packer.epoch_rows(0)
    inside = targets[:, :-1]

    assert np.all((inside == tokens[:, 1:]) | (inside == IGNORED))
    assert 0 < (inside == IGNORED).mean() < 0.6


def test_only_the_answer_of_a_chat_turn_is_learned(tokenizer: Tokenizer, packer: Packer) -> None:
    piece = packer.chat(Turn("Write area(width).", "def area(width): ..."))
    learned = [token for token, flag in zip(piece.tokens, piece.learned, strict=True) if flag]

    assert tokenizer.decode(learned, skip_special_tokens=False) == "def area(width): ...<|turn_end|>"


def test_the_chat_template_writes_what_training_showed(tokenizer: Tokenizer, packer: Packer) -> None:
    piece = packer.chat(Turn("Write area(width).", "def area(width): ..."))
    messages = [{"role": "user", "content": "Write area(width)."}]
    template = jinja2.Environment().from_string(names.CHAT_TEMPLATE)
    prompt = template.render(messages=messages, bos_token=names.BEGIN, add_generation_prompt=True)

    assert tokenizer.encode(prompt, add_special_tokens=False).ids == list(piece.tokens[~piece.learned])


def test_functions_without_a_docstring_are_left_out(documents: list[Document]) -> None:
    found = list(functions(documents[0]))

    assert [function.head for function in found] == [
        "area(width, height=2)",
        "perimeter(self, width, height)",
    ]
    assert found[0].doc == "Return the area of a rectangle."


def test_every_text_of_a_function_is_python(documents: list[Document]) -> None:
    for function in functions(documents[0]):
        for text in (function.opening, function.source, function.bare):
            assert isinstance(ast.parse(text).body[0], ast.FunctionDef)
        assert function.source.startswith(function.opening)
        assert '"""' not in function.bare


def test_a_gap_closes_to_the_function_it_was_cut_from(documents: list[Document]) -> None:
    sources = [function.source for document in documents for function in functions(document)]
    closed = [gap.prefix + gap.middle + gap.suffix for gap in gaps(documents, random.Random(5))]

    assert closed == sources


def test_turns_ask_for_code_and_for_explanations(documents: list[Document]) -> None:
    turns = list(chat_turns(documents * 4, random.Random(6)))
    explained = [turn for turn in turns if turn.answer.startswith("Return the ")]

    assert len(turns) == 48
    assert 0.05 < len(explained) / len(turns) < 0.45
    assert 0 < sum(turn.is_call for turn in turns) < 24


def test_a_call_names_the_tool_and_gives_the_arguments_that_were_asked_for(documents: list[Document]) -> None:
    calls = [turn for turn in chat_turns(documents * 4, random.Random(6)) if turn.is_call]

    for turn in calls:
        tool, call = json.loads(turn.tools), json.loads(turn.answer)
        assert call["name"] == tool["name"]
        assert list(call["arguments"]) == tool["parameters"]["required"]
        assert all(
            f"{name} = {json.dumps(value)}" in turn.question for name, value in call["arguments"].items()
        )


def test_the_chat_template_writes_tools_and_calls_as_training_showed(
    tokenizer: Tokenizer, packer: Packer
) -> None:
    tool = {"name": "area", "description": "Return the area."}
    call = {"name": "area", "arguments": {"width": 3}}
    piece = packer.chat(Turn("Use area: width = 3", json.dumps(call), json.dumps(tool), is_call=True))
    environment = jinja2.Environment()
    environment.filters["tojson"] = json.dumps
    text = environment.from_string(names.CHAT_TEMPLATE).render(
        bos_token=names.BEGIN,
        tools=[{"type": "function", "function": tool}],
        messages=[
            {"role": "user", "content": "Use area: width = 3"},
            {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": call}]},
        ],
    )

    assert tokenizer.encode(text, add_special_tokens=False).ids == list(piece.tokens)


def test_a_tokenizer_that_lacks_a_special_token_is_refused() -> None:
    plain = Tokenizer.from_str(
        '{"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}'
    )

    with pytest.raises(SystemExit, match=r"lacks .*<\|begin\|>"):
        names.special_ids(plain)
