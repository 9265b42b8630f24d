"""Metadata of a GGUF file -> tokenizer.json and tokenizer_config.json.

Called by engine.gguf_folder. A file that carries its original tokenizer.json is believed; else byte-level BPE
("gpt2", whose splitting rule is named by `tokenizer.ggml.pre`) and SentencePiece's BPE ("llama") are rebuilt.
Other kinds, and rules not known here, are refused by name: a near miss would be another model.
"""

from collections.abc import Mapping
from typing import Any, Final

from penstock.errors import ModelLoadError
from penstock.text.tokenizer_file import parse_json_text

JSON = dict[str, Any]  # Any: what becomes a JSON file
Metadata = Mapping[str, Any]  # Any: what a stranger's file says, checked here

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4

_CONTRACTIONS: Final = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS: Final = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST: Final = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# tokenizer.ggml.pre -> splitting pattern; None: GPT-2's own, which the library has built in
PATTERNS: Final[Mapping[str, str | None]] = {
    "gpt-2": None,
    "smollm": None,
    "llama-bpe": rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}",
    "qwen2": rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}",
}
SPACE: Final = "\u2581"  # how SentencePiece writes a space


def tokenizer_of(metadata: Metadata) -> tuple[JSON, JSON]:
    """(tokenizer.json, tokenizer_config.json)."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    whole = metadata.get("tokenizer.huggingface.json")
    if whole is None and not (isinstance(tokens, list) and tokens):
        raise _refusal("holds no tokenizer")
    kind = metadata.get("tokenizer.ggml.model")
    if whole is not None:
        tokenizer = parse_json_text(str(whole), "tokenizer.huggingface.json")
    elif kind == "gpt2":
        tokenizer = _byte_level(metadata, _checked(tokens or []))
    elif kind == "llama":
        tokenizer = _sentencepiece(metadata, _checked(tokens or []))
    else:
        raise _refusal(f"has a tokenizer of the kind {str(kind)!r:.40}; gpt2 and llama are read")
    config: JSON = {}
    for key, name in (
        ("bos", "bos_token"),
        ("eos", "eos_token"),
        ("unknown", "unk_token"),
        ("padding", "pad_token"),
    ):
        token_id = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(token_id, int) and isinstance(tokens, list):
            if not 0 <= token_id < len(tokens):
                raise _refusal(f"names token {token_id} as {name} of {len(tokens)} tokens")
            config[name] = tokens[token_id]
    template = metadata.get("tokenizer.chat_template")
    if template is not None:
        config["chat_template"] = template
    return tokenizer, config


def _refusal(why: str) -> ModelLoadError:
    return ModelLoadError("bad_tokenizer", f"the GGUF file {why}.")


def _checked(tokens: list[str]) -> dict[str, int]:
    vocab = {token: index for index, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise _refusal("has the same token twice")
    try:
        "".join(tokens).encode()
    except UnicodeEncodeError:
        raise _refusal("has tokens that are not UTF-8") from None
    return vocab


def _array(metadata: Metadata, name: str, count: int) -> list[Any] | None:  # Any: numbers
    """One entry per token, or None where the file has none."""
    values = metadata.get(f"tokenizer.ggml.{name}")
    if values is None:
        return None
    if isinstance(values, str | int | float) or len(values) != count:
        raise _refusal(f"has {count} tokens and another number of {name}")
    return values if isinstance(values, list) else list(values.tolist())


def _added(metadata: Metadata, vocab: Mapping[str, int]) -> list[JSON]:
    kinds = _array(metadata, "token_type", len(vocab)) or []
    return [
        {
            "id": index, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": kind != USER_DEFINED,
        }
        for (token, index), kind in zip(vocab.items(), kinds, strict=False)
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]  # fmt: skip


def _ends(metadata: Metadata, vocab: Mapping[str, int], *, add_bos: bool) -> JSON | None:
    """The post-processor that puts BOS before a text and EOS after it, as the file asks."""
    tokens = list(vocab)
    template: list[JSON] = [{"Sequence": {"id": "A", "type_id": 0}}]
    specials: JSON = {}
    for name, default, at in (("bos", add_bos, 0), ("eos", False, 1)):
        token_id = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if not metadata.get(f"tokenizer.ggml.add_{name}_token", default) or not isinstance(token_id, int):
            continue
        if not 0 <= token_id < len(tokens):
            raise _refusal(f"names token {token_id} as its {name} of {len(tokens)} tokens")
        token = tokens[token_id]
        template.insert(at * len(template), {"SpecialToken": {"id": token, "type_id": 0}})
        specials[token] = {"id": token, "ids": [token_id], "tokens": [token]}
    if not specials:
        return None
    second = [{kind: {**part, "type_id": 1} for kind, part in piece.items()} for piece in template]
    return {
        "type": "TemplateProcessing", "single": template, "pair": template + [
            {kind: {**part, "id": "B"} if kind == "Sequence" else part for kind, part in piece.items()}
            for piece in second
        ], "special_tokens": specials,
    }  # fmt: skip


def _bpe(vocab: Mapping[str, int], merges: list[tuple[str, str]], **rest: Any) -> JSON:  # Any: JSON
    return {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
        "vocab": dict(vocab), "merges": [list(pair) for pair in merges], **rest,
    }  # fmt: skip


def _byte_level(metadata: Metadata, vocab: dict[str, int]) -> JSON:
    rule = metadata.get("tokenizer.ggml.pre", "gpt-2")
    rule = "gpt-2" if rule == "default" else rule
    if rule not in PATTERNS:
        known = ", ".join(PATTERNS)
        raise _refusal(f"splits texts by the rule {str(rule)!r:.40}; known are {known}")
    merges = metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise _refusal("has no merges")
    pairs = [tuple(str(merge).split(" ")) for merge in merges]
    if any(len(pair) != 2 for pair in pairs):
        raise _refusal("has a merge that is not two tokens")
    level: JSON = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    pattern = PATTERNS[rule]
    splits: list[JSON] = []
    if rule == "smollm":
        splits.append({"type": "Digits", "individual_digits": True})
    if pattern is not None:
        splits.append(
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        )
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": _added(metadata, vocab),
        "normalizer": {"type": "NFC"} if rule == "qwen2" else None,
        "pre_tokenizer": {
            "type": "Sequence", "pretokenizers": [*splits, {**level, "use_regex": pattern is None}],
        },
        "post_processor": _ends(metadata, vocab, add_bos=rule == "llama-bpe"),
        "decoder": {**level, "add_prefix_space": True, "use_regex": True},
        "model": _bpe(vocab, pairs, ignore_merges=rule == "llama-bpe"),  # type: ignore[arg-type]  # pairs: counted
    }  # fmt: skip


def _sentencepiece(metadata: Metadata, vocab: dict[str, int]) -> JSON:
    scores = _array(metadata, "scores", len(vocab))
    if scores is None:
        raise _refusal("has no scores")
    unknown = metadata.get("tokenizer.ggml.unknown_token_id")
    tokens = list(vocab)
    has_prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
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
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": _added(metadata, vocab),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "post_processor": _ends(metadata, vocab, add_bos=True),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(
            vocab, _merges(vocab, scores), fuse_unk=True, byte_fallback=True,
            unk_token=tokens[unknown] if isinstance(unknown, int) and 0 <= unknown < len(tokens) else None,
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
