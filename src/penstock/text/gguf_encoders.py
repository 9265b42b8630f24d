"""Tokenizers of encoders in a GGUF file -> tokenizer.json: BERT's words and pieces, SentencePiece's Unigram.

Called by text.gguf_tokenizer. llama.cpp writes a word's first piece with the space before it and further
pieces bare, where tokenizer.json has them bare and with ## before them. Refuses what it cannot rebuild.
"""

import base64
from collections.abc import Mapping
from typing import Final

from penstock.text.gguf_vocabulary import (
    CONTROL,
    JSON,
    SPACE,
    Metadata,
    added_tokens,
    around,
    ends,
    find_array,
    find_flag,
    find_scores,
    find_token,
    refusal,
    vocabulary,
)

PIECE: Final = "##"
MAX_WORD: Final = 100  # letters; a longer word is unknown
# Ids of BERT, which a file means that does not say others.
CLS, SEP, UNK = 101, 102, 100


def wordpiece(metadata: Metadata, tokens: list[str]) -> JSON:
    """The first and last token are those of BERT's template, which files need not ask for."""
    kinds = find_array(metadata, "token_type", len(tokens)) or [0] * len(tokens)
    vocab = vocabulary([_as_piece(token, kind) for token, kind in zip(tokens, kinds, strict=True)])
    pieces = list(vocab)
    first = find_token(metadata, "cls", pieces)
    first = find_token(metadata, "bos", pieces, CLS) if first is None else first
    last = find_token(metadata, "seperator", pieces, SEP)  # as the format spells it
    unknown = find_token(metadata, "unknown", pieces, UNK)
    assert unknown is not None, "there is a default"
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": added_tokens(metadata, vocab),
        "normalizer": {
            "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
            "strip_accents": find_flag(metadata, "normalizer.strip_accents", None),
            "lowercase": find_flag(metadata, "normalizer.lowercase", _is_lower(vocab, kinds)),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": around(pieces, first, last),
        "decoder": {"type": "WordPiece", "prefix": PIECE, "cleanup": True},
        "model": {
            "type": "WordPiece", "unk_token": pieces[unknown], "continuing_subword_prefix": PIECE,
            "max_input_chars_per_word": MAX_WORD, "vocab": vocab,
        },
    }  # fmt: skip


def _as_piece(token: str, kind: int) -> str:
    if kind == CONTROL:
        return token
    return token.removeprefix(SPACE) if token.startswith(SPACE) else PIECE + token


def _is_lower(vocab: Mapping[str, int], kinds: list[int]) -> bool:
    """Whether texts are made lower case first: then no piece has a capital, but [unused0] and its like."""
    pieces = (token for token, kind in zip(vocab, kinds, strict=True) if kind != CONTROL)
    return all(piece == piece.lower() for piece in pieces if not piece.startswith("["))


def unigram(metadata: Metadata, tokens: list[str]) -> JSON:
    vocab = vocabulary(tokens)
    scores = find_scores(metadata, len(tokens))
    has_prefix = find_flag(metadata, "add_space_prefix", True)
    space = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always" if has_prefix else "never"}
    words: list[JSON] = [{"type": "WhitespaceSplit"}]
    if not find_flag(metadata, "remove_extra_whitespaces", False):
        words = []
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": added_tokens(metadata, vocab),
        "normalizer": _characters(metadata),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*words, {**space, "split": True}]},
        "post_processor": ends(metadata, vocab, add_bos=False, add_eos=True),
        "decoder": {**space, "split": True},
        "model": {
            "type": "Unigram", "unk_id": find_token(metadata, "unknown", tokens), "byte_fallback": False,
            "vocab": [[token, score] for token, score in zip(tokens, scores, strict=True)],
        },
    }  # fmt: skip


def _characters(metadata: Metadata) -> JSON | None:
    """What SentencePiece replaces before it looks for pieces: a table of bytes."""
    table = metadata.get("tokenizer.ggml.precompiled_charsmap")
    if table is None:
        return None
    try:
        content = bytes(int(byte) & 0xFF for byte in table)
    except (TypeError, ValueError):
        raise refusal("has a precompiled_charsmap that is no list of bytes") from None
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(content).decode()}
