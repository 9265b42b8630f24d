"""Metadata of a GGUF file -> tokenizer.json and tokenizer_config.json.

Called by engine.gguf_folder. A file that carries its original tokenizer.json is believed; else byte-level BPE
("gpt2", whose splitting rule is named by `tokenizer.ggml.pre`) and SentencePiece's BPE ("llama") are rebuilt
here, those of encoders ("bert", "t5") in gguf_encoders. Other kinds, and rules not known here, are refused by
name: a near miss would be another model.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from penstock.text.gguf_encoders import unigram, wordpiece
from penstock.text.gguf_vocabulary import (
    JSON,
    SPACE,
    Metadata,
    added_tokens,
    ends,
    find_flag,
    find_scores,
    find_token,
    refusal,
    vocabulary,
)
from penstock.text.tokenizer_file import parse_json_text

_CONTRACTIONS: Final = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS: Final = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST: Final = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SYMBOLS: Final = r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_DEEPSEEK_WORDS: Final = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|" + _SYMBOLS
)
# tokenizer.ggml.pre -> splitting patterns, in order; none: GPT-2's own, which the library has built in
PATTERNS: Final[Mapping[str, tuple[str, ...]]] = {
    "gpt-2": (),
    "smollm": (),
    "roberta-bpe": (),
    "llama-bpe": (rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}",),
    "qwen2": (rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}",),
    "deepseek-v3": (r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", _DEEPSEEK_WORDS),
}
HAS_ENDS: Final = ("roberta-bpe",)  # rules whose texts begin and end with a token, whatever the file says
NAMES: Final = {  # of tokens: in the file, in tokenizer_config.json
    "bos": "bos_token",
    "eos": "eos_token",
    "unknown": "unk_token",
    "padding": "pad_token",
    "cls": "cls_token",
    "seperator": "sep_token",  # as the format spells it
    "mask": "mask_token",
}


def tokenizer_of(metadata: Metadata) -> tuple[JSON, JSON]:
    """(tokenizer.json, tokenizer_config.json)."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    whole = metadata.get("tokenizer.huggingface.json")
    if whole is None and not (isinstance(tokens, list) and tokens):
        raise refusal("holds no tokenizer")
    kind = str(metadata.get("tokenizer.ggml.model"))
    if whole is not None:
        tokenizer = parse_json_text(str(whole), "tokenizer.huggingface.json")
    elif kind in KINDS:
        tokenizer = KINDS[kind](metadata, tokens or [])
    else:
        raise refusal(f"has a tokenizer of the kind {kind!r:.40}; read are {', '.join(KINDS)}")
    config: JSON = {}
    if isinstance(tokens, list):
        for key, name in NAMES.items():
            token_id = find_token(metadata, key, tokens)
            if token_id is not None:
                config[name] = tokens[token_id]
    template = metadata.get("tokenizer.chat_template")
    if template is not None:
        config["chat_template"] = template
    return tokenizer, config


def _bpe(vocab: Mapping[str, int], merges: list[tuple[str, str]], **rest: Any) -> JSON:  # Any: JSON
    return {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
        "vocab": dict(vocab), "merges": [list(pair) for pair in merges], **rest,
    }  # fmt: skip


def _byte_level(metadata: Metadata, tokens: list[str]) -> JSON:
    vocab = vocabulary(tokens)
    rule = str(metadata.get("tokenizer.ggml.pre", "gpt-2"))
    rule = "gpt-2" if rule == "default" else rule
    if rule not in PATTERNS:
        known = ", ".join(PATTERNS)
        raise refusal(f"splits texts by the rule {rule!r:.40}; known are {known}")
    merges = metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise refusal("has no merges")
    pairs = [tuple(str(merge).split(" ")) for merge in merges]
    if any(len(pair) != 2 for pair in pairs):
        raise refusal("has a merge that is not two tokens")
    level: JSON = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    splits: list[JSON] = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in PATTERNS[rule]
    ]
    if rule == "smollm":
        splits.append({"type": "Digits", "individual_digits": True})
    has_ends = rule in HAS_ENDS
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added_tokens(metadata, vocab),
        "normalizer": {"type": "NFC"} if rule == "qwen2" else None,
        "pre_tokenizer": {
            "type": "Sequence", "pretokenizers": [*splits, {**level, "use_regex": not PATTERNS[rule]}],
        },
        "post_processor": ends(
            metadata, vocab, add_bos=has_ends or rule == "llama-bpe", add_eos=has_ends
        ),
        "decoder": {**level, "add_prefix_space": True, "use_regex": True},
        "model": _bpe(vocab, pairs, ignore_merges=rule == "llama-bpe"),  # type: ignore[arg-type]  # pairs: counted
    }  # fmt: skip


def _sentencepiece(metadata: Metadata, tokens: list[str]) -> JSON:
    vocab = vocabulary(tokens)
    scores = find_scores(metadata, len(vocab))
    unknown = find_token(metadata, "unknown", tokens)
    has_prefix = find_flag(metadata, "add_space_prefix", True)
    normalizers: list[JSON] = [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
    decoders: list[JSON] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if has_prefix:
        normalizers.insert(0, {"type": "Prepend", "prepend": SPACE})
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added_tokens(metadata, vocab),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "post_processor": ends(metadata, vocab, add_bos=True),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(
            vocab, _merges(vocab, scores), fuse_unk=True, byte_fallback=True,
            unk_token=None if unknown is None else tokens[unknown],
        ),
    }  # fmt: skip


def _merges(vocab: Mapping[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """SentencePiece joins the pair whose whole has the best score: each whole's pairs, best whole first."""
    found: list[tuple[float, int, int, str, str]] = []
    for (token, _), score in zip(vocab.items(), scores, strict=True):
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                found.append((-score, vocab[left], vocab[right], left, right))
    found.sort(key=lambda entry: entry[0])  # stable: of equal scores the earlier token first
    return [(left, right) for *_, left, right in found]


KINDS: Final[Mapping[str, Callable[[Metadata, list[str]], JSON]]] = {
    "gpt2": _byte_level,
    "llama": _sentencepiece,
    "bert": wordpiece,
    "t5": unigram,
}
