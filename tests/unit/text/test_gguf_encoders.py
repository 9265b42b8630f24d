"""The tokenizer of an encoder, rebuilt from a GGUF file's metadata, gives the ids of the one it came from."""

import pytest
from tests.unit.text.test_gguf_tokenizer import BYTE_LEVEL, FIXTURES, MORE_TEXTS, library, read

from penstock.errors import ModelLoadError
from penstock.text.gguf_tokenizer import tokenizer_of
from penstock.text.gguf_vocabulary import CONTROL, SPACE, UNKNOWN

ENDS = {"[PAD]": "padding", "[UNK]": "unknown", "[CLS]": "cls", "[SEP]": "seperator", "[MASK]": "mask"}


def converted(token: str, kind: int) -> str:
    """As the converter writes a piece."""
    if kind == CONTROL:
        return token
    return token[2:] if token.startswith("##") else SPACE + token


def bert_metadata():
    whole, metadata, texts = read("wordpiece_bert")
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    ids = {f"tokenizer.ggml.{name}_token_id": tokens.index(token) for token, name in ENDS.items()}
    stored = [converted(token, kind) for token, kind in zip(tokens, kinds, strict=True)]
    return whole, metadata | ids | {"tokenizer.ggml.model": "bert", "tokenizer.ggml.tokens": stored}, texts


def unigram_metadata():
    whole, metadata, texts = read_unigram()
    kinds = metadata["tokenizer.ggml.token_type"]
    kinds[3] = UNKNOWN
    more = {
        "tokenizer.ggml.model": "t5", "tokenizer.ggml.unknown_token_id": 3, "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": True,
    }  # fmt: skip
    return whole, metadata | more, texts


def read_unigram():
    """As `read`, of a vocabulary that is pairs of a piece and its score."""
    import json

    place = FIXTURES / "unigram_xlm_roberta"
    whole = json.loads((place / "tokenizer.json").read_text("utf-8"))
    pieces = [piece for piece, _ in whole["model"]["vocab"]]
    scores = [score for _, score in whole["model"]["vocab"]]
    kinds = [1] * len(pieces)
    for added in whole["added_tokens"]:
        if added["id"] == len(pieces):
            pieces, scores, kinds = [*pieces, added["content"]], [*scores, 0.0], [*kinds, 1]
        kinds[added["id"]] = CONTROL
    texts = [golden["text"] for golden in json.loads((place / "goldens.json").read_text("utf-8"))]
    metadata = {"tokenizer.ggml.tokens": pieces, "tokenizer.ggml.scores": scores}
    return whole, metadata | {"tokenizer.ggml.token_type": kinds}, [*texts, *MORE_TEXTS]


@pytest.mark.parametrize("add_special", [True, False])
def test_words_and_pieces_give_the_same_ids(add_special):
    whole, metadata, texts = bert_metadata()
    content, config = tokenizer_of(metadata)
    ours, theirs = library(content), library(whole)

    assert config["cls_token"] == "[CLS]"
    assert config["unk_token"] == "[UNK]"
    for text in texts:
        expected = theirs.encode(text, add_special_tokens=add_special).ids

        assert ours.encode(text, add_special_tokens=add_special).ids == expected, text
        assert ours.decode(expected) == theirs.decode(expected)


@pytest.mark.parametrize(
    ("change", "ids"),
    [
        ({}, [1, 0]),  # a piece with a capital says that case counts
        ({"tokenizer.ggml.normalizer.lowercase": True}, [1, 1]),
    ],
)
def test_whether_case_counts_is_said_by_the_file_or_else_by_its_pieces(change, ids):
    metadata = {
        "tokenizer.ggml.model": "bert", "tokenizer.ggml.tokens": ["[UNK]", SPACE + "the", SPACE + "The"],
        "tokenizer.ggml.token_type": [CONTROL, 1, 1], "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.cls_token_id": 0, "tokenizer.ggml.seperator_token_id": 0,
    }  # fmt: skip
    ours = library(tokenizer_of(metadata | change)[0])

    assert ours.encode("the THE", add_special_tokens=False).ids == ids


def test_ids_that_a_bert_file_does_not_say_are_berts_own():
    tokens = [f"[{index}]" for index in range(104)]
    metadata = {"tokenizer.ggml.model": "bert", "tokenizer.ggml.tokens": tokens}
    metadata |= {"tokenizer.ggml.token_type": [CONTROL] * 104}

    assert library(tokenizer_of(metadata)[0]).encode("x").ids == [101, 100, 102]


@pytest.mark.parametrize("add_special", [True, False])
def test_scored_pieces_give_the_same_ids(add_special):
    whole, metadata, texts = unigram_metadata()
    ours, theirs = library(tokenizer_of(metadata)[0]), library(whole)
    plain = [text for text in texts if "<mask>" not in text]  # which takes the space before it along

    assert len(plain) > 10
    for text in plain:
        expected = theirs.encode(text, add_special_tokens=add_special).ids

        assert ours.encode(text, add_special_tokens=add_special).ids == expected, text


def test_spaces_that_a_file_drops_are_no_pieces():
    _, metadata, _ = unigram_metadata()
    ours = library(tokenizer_of(metadata | {"tokenizer.ggml.remove_extra_whitespaces": True})[0])

    assert ours.encode("  the \t he ").ids == ours.encode("the he").ids


def test_roberta_stands_between_its_ends_whatever_its_file_says():
    _, metadata, _ = read("byte_level_gpt2")
    metadata |= {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "roberta-bpe", "tokenizer.ggml.merges": [],
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
    }  # fmt: skip
    ids = library(tokenizer_of(metadata)[0]).encode("a").ids

    assert (ids[0], ids[-1], len(ids)) == (1, 2, 3)
    assert "byte_level_gpt2" in BYTE_LEVEL


def test_deepseek_splits_numbers_by_three_and_ideographs_apart():
    tokens = [*"12345ab", "\u4f60"]
    metadata = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "deepseek-v3", "tokenizer.ggml.merges": [],
        "tokenizer.ggml.tokens": tokens,
    }  # fmt: skip
    split = library(tokenizer_of(metadata)[0]).pre_tokenizer.pre_tokenize_str("a12345 b.\u4f60\u597d!x  c")

    assert [len(piece.encode()) and (begin, end) for piece, (begin, end) in split] == [
        (0, 1), (1, 4), (4, 6), (6, 8), (8, 9), (9, 11), (11, 13), (13, 14), (14, 16),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"tokenizer.ggml.scores": None}, "no scores"),
        ({"tokenizer.ggml.scores": [0.0]}, "another number"),
        ({"tokenizer.ggml.scores": ["a"] * 322}, "no number"),
        ({"tokenizer.ggml.add_bos_token": [1]}, "true or false"),
        ({"tokenizer.ggml.remove_extra_whitespaces": 1}, "true or false"),
        ({"tokenizer.ggml.bos_token_id": [1]}, "no token"),
        ({"tokenizer.ggml.precompiled_charsmap": "abc"}, "charsmap"),
        ({"tokenizer.ggml.unknown_token_id": 1 << 20}, "names token"),
    ],
)
def test_an_encoders_tokenizer_that_is_damaged_is_refused(change, why):
    _, metadata, _ = unigram_metadata()
    with pytest.raises(ModelLoadError, match=why):
        tokenizer_of(metadata | change)
