"""A tokenizer rebuilt from a GGUF file's metadata gives the ids of the one the metadata came from."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from penstock.errors import ModelLoadError
from penstock.text.gguf_tokenizer import tokenizer_of
from penstock.text.gguf_vocabulary import CONTROL, SPACE, UNKNOWN, USER_DEFINED

FIXTURES = Path(__file__).parents[2] / "fixtures" / "tokenizers"
NORMAL, BYTE = 1, 6
BYTE_LEVEL = {"byte_level_gpt2": "gpt-2", "byte_level_llama3": "llama-bpe", "byte_level_qwen2": "qwen2"}
MORE_TEXTS = (
    "I'LL say it's 3.14159, 1000000 times; they're done.\r\n\n\tNext\u00a0line   ends  ",
    "def f(x):\n    return {'a': x[0], \"b\": -1}  # none\n\n\n",
    "Zażółć gęślą jaźń, e\u0301 and \u00e9, ﬁne Ⅻ ½ ١٢٣ 你好，世界！ こんにちは 안녕 🙂👩‍👩‍👧 \u200b\ufeff",
    "   leading, trailing   IT'Sx we'REad ",
    "\x00\x7f control \x1b[0m",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa the the the thethethe 'tis o'clock",
)

JSON = dict[str, Any]  # Any: foreign JSON


def read(folder: str) -> tuple[JSON, JSON, list[str]]:
    """(tokenizer.json, metadata without merges or scores, texts)."""
    place = FIXTURES / folder
    whole = json.loads((place / "tokenizer.json").read_text("utf-8"))
    ids = dict(whole["model"]["vocab"]) | {added["content"]: added["id"] for added in whole["added_tokens"]}
    tokens = sorted(ids, key=ids.__getitem__)
    assert [ids[token] for token in tokens] == list(range(len(tokens)))
    kinds = [NORMAL] * len(tokens)
    for added in whole["added_tokens"]:
        kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    texts = [golden["text"] for golden in json.loads((place / "goldens.json").read_text("utf-8"))]
    metadata = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds}
    return whole, metadata, [*texts, *MORE_TEXTS]


def library(content: JSON) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(content))


def with_ends(metadata: JSON, whole: JSON) -> JSON:
    """The template's token before a text, as a converter names it."""
    post = whole["post_processor"] or {}
    stages = post.get("processors", [post])
    first = next((stage["single"][0] for stage in stages if "single" in stage), {})
    if "SpecialToken" in first:
        bos = metadata["tokenizer.ggml.tokens"].index(first["SpecialToken"]["id"])
        return metadata | {"tokenizer.ggml.bos_token_id": bos, "tokenizer.ggml.add_bos_token": True}
    return metadata


def rebuilt(folder: str) -> tuple[Tokenizer, Tokenizer, list[str]]:
    whole, metadata, texts = read(folder)
    merges = [m if isinstance(m, str) else " ".join(m) for m in whole["model"]["merges"]]
    metadata = with_ends(metadata, whole) | {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": BYTE_LEVEL[folder],
        "tokenizer.ggml.merges": merges,
    }  # fmt: skip
    content, _ = tokenizer_of(metadata)
    return library(content), library(whole), texts


@pytest.mark.parametrize("folder", BYTE_LEVEL)
@pytest.mark.parametrize("add_special", [True, False])
def test_byte_level_bpe_gives_the_same_ids(folder, add_special):
    ours, theirs, texts = rebuilt(folder)
    for text in texts:
        expected = theirs.encode(text, add_special_tokens=add_special).ids

        assert ours.encode(text, add_special_tokens=add_special).ids == expected, text


@pytest.mark.parametrize("folder", BYTE_LEVEL)
def test_byte_level_bpe_gives_the_same_text(folder):
    ours, theirs, texts = rebuilt(folder)
    for text in texts:
        ids = theirs.encode(text).ids
        for skip in (True, False):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("folder", BYTE_LEVEL)
def test_byte_level_bpe_splits_texts_alike(folder):
    ours, theirs, texts = rebuilt(folder)
    for text in texts:
        assert ours.pre_tokenizer.pre_tokenize_str(text) == theirs.pre_tokenizer.pre_tokenize_str(text), text


@pytest.mark.parametrize(
    ("rule", "has_bos", "keeps_words"), [("llama-bpe", True, True), ("qwen2", False, False)]
)
def test_what_a_rule_implies_where_the_file_says_nothing(rule, has_bos, keeps_words):
    """Llama 3 begins with BOS, and a word that is a token stays whole though no merges lead to it."""
    metadata = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": rule, "tokenizer.ggml.merges": [],
        "tokenizer.ggml.tokens": ["<s>", "x", "y", "xy"], "tokenizer.ggml.bos_token_id": 0,
    }  # fmt: skip

    assert library(tokenizer_of(metadata)[0]).encode("xy").ids == [0] * has_bos + (
        [3] if keeps_words else [1, 2]
    )


def sentencepiece_metadata() -> tuple[JSON, JSON, list[str]]:
    """Scores as SentencePiece trains them: the n-th merge that was found has the score -n."""
    whole, metadata, texts = read("sentencepiece_llama2")
    scores: dict[str, float] = {}
    for rank, (left, right) in enumerate(whole["model"]["merges"]):
        scores.setdefault(left + right, float(-rank))
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    for index, token in enumerate(tokens):
        if len(token) == 6 and token.startswith("<0x"):
            kinds[index] = BYTE
    kinds[0] = UNKNOWN
    metadata |= {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.scores": [scores.get(token, -1000.0 - i) for i, token in enumerate(tokens)],
    }  # fmt: skip
    return whole, metadata, texts


def by_sentencepiece(metadata: JSON, text: str) -> list[int]:
    """The definition: the best-scored neighbours are joined, the leftmost of equals, until none can be."""
    vocab = {token: index for index, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    scores = metadata["tokenizer.ggml.scores"]
    pieces = list((SPACE + text).replace(" ", SPACE)) if text else []
    while True:
        joined = [a + b for a, b in pairwise(pieces)]
        known = [at for at, piece in enumerate(joined) if piece in vocab]
        if not known:
            break
        best = max(known, key=lambda at: (scores[vocab[joined[at]]], -at))
        pieces[best : best + 2] = [joined[best]]
    ids: list[int] = []
    for piece in pieces:
        ids += [vocab[piece]] if piece in vocab else [vocab[f"<0x{byte:02X}>"] for byte in piece.encode()]
    return ids


def test_sentencepiece_bpe_gives_the_ids_of_its_definition():
    _, metadata, texts = sentencepiece_metadata()
    ours = library(tokenizer_of(metadata)[0])
    plain = [text for text in texts if "<s>" not in text and "</s>" not in text and "<unk>" not in text]

    assert len(plain) > 10
    for text in plain:
        assert ours.encode(text, add_special_tokens=False).ids == by_sentencepiece(metadata, text), text


def test_sentencepiece_bpe_puts_its_bos_first_and_reads_specials():
    whole, metadata, texts = sentencepiece_metadata()
    ours, theirs = library(tokenizer_of(metadata)[0]), library(whole)

    assert ours.encode("").ids == [1]
    assert ours.encode("a</s>").ids[-1] == 2
    for text in texts:
        ids = theirs.encode(text).ids
        assert ours.decode(ids) == theirs.decode(ids)


def test_no_space_is_put_first_where_the_file_says_so():
    _, metadata, _ = sentencepiece_metadata()
    with_prefix = library(tokenizer_of(metadata)[0])
    without = library(tokenizer_of(metadata | {"tokenizer.ggml.add_space_prefix": False})[0])

    assert (
        without.encode(" the", add_special_tokens=False).ids
        == with_prefix.encode("the", add_special_tokens=False).ids
    )


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"tokenizer.ggml.pre": "unheard-of"}, "splits texts"),
        ({"tokenizer.ggml.model": "rwkv"}, "of the kind"),
        ({"tokenizer.ggml.model": ["gpt2"]}, "of the kind"),
        ({"tokenizer.ggml.pre": ["gpt-2"]}, "splits texts"),
        ({"tokenizer.ggml.merges": None}, "no merges"),
        ({"tokenizer.ggml.merges": ["a b c"]}, "not two tokens"),
        ({"tokenizer.ggml.tokens": []}, "no tokenizer"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "twice"),
        ({"tokenizer.ggml.token_type": [1]}, "another number"),
        ({"tokenizer.ggml.bos_token_id": 1 << 20, "tokenizer.ggml.add_bos_token": True}, "names token"),
    ],
)
def test_what_cannot_be_rebuilt_exactly_is_refused(change, why):
    _, metadata, _ = read("byte_level_gpt2")
    good = metadata | {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.merges": [],
    }  # fmt: skip
    tokenizer_of(good)
    with pytest.raises(ModelLoadError, match=why) as caught:
        tokenizer_of(good | change)

    assert caught.value.code == "bad_tokenizer"
