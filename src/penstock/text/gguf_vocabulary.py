"""What every kind of tokenizer in a GGUF file has: a list of tokens, their types, what stands around a text.

Called by the files that rebuild one kind each. Refuses arrays of another length and ids that are no tokens.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

from penstock.errors import ModelLoadError

JSON = dict[str, Any]  # Any: what becomes a JSON file
Metadata = Mapping[str, Any]  # Any: what a stranger's file says, checked here

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
SPACE: Final = "\u2581"  # how SentencePiece writes a space


def refusal(why: str) -> ModelLoadError:
    return ModelLoadError("bad_tokenizer", f"the GGUF file {why}.")


def vocabulary(tokens: list[str]) -> dict[str, int]:
    vocab = {token: index for index, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise refusal("has the same token twice")
    try:
        "".join(tokens).encode()
    except UnicodeEncodeError:
        raise refusal("has tokens that are not UTF-8") from None
    return vocab


def find_array(metadata: Metadata, name: str, count: int) -> list[Any] | None:  # Any: numbers
    """One entry per token, or None where the file has none."""
    values = metadata.get(f"tokenizer.ggml.{name}")
    if values is None:
        return None
    if isinstance(values, str | int | float) or len(values) != count:
        raise refusal(f"has {count} tokens and another number of {name}")
    return values if isinstance(values, list) else list(values.tolist())


def find_token(metadata: Metadata, name: str, tokens: list[str], default: int | None = None) -> int | None:
    """The id that the file names as its `name`; None where it names none."""
    token_id = metadata.get(f"tokenizer.ggml.{name}_token_id", default)
    if token_id is None:
        return None
    if not isinstance(token_id, int):
        raise refusal(f"names {str(token_id)!r:.40} as its {name}, which is no token")
    if not 0 <= token_id < len(tokens):
        raise refusal(f"names token {token_id} as its {name} of {len(tokens)} tokens")
    return token_id


def find_scores(metadata: Metadata, count: int) -> list[float]:
    """Of every token."""
    scores = find_array(metadata, "scores", count)
    if scores is None:
        raise refusal("has no scores")
    if not all(isinstance(score, int | float) and math.isfinite(score) for score in scores):
        raise refusal("has a score that is no number")
    return scores


def find_flag(metadata: Metadata, name: str, default: bool | None) -> bool | None:
    """Whether the file says `name`."""
    value = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, bool | None):
        raise refusal(f"has {str(value)!r:.40} for {name}, which is true or false")
    return default if value is None else value


def added_tokens(metadata: Metadata, vocab: Mapping[str, int]) -> list[JSON]:
    kinds = find_array(metadata, "token_type", len(vocab)) or []
    return [
        {
            "id": index, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": kind != USER_DEFINED,
        }
        for (token, index), kind in zip(vocab.items(), kinds, strict=False)
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]  # fmt: skip


def ends(
    metadata: Metadata, vocab: Mapping[str, int], *, add_bos: bool, add_eos: bool = False
) -> JSON | None:
    """The post-processor that puts BOS before a text and EOS after it, as the file asks."""
    tokens = list(vocab)
    found = []
    for name, default in (("bos", add_bos), ("eos", add_eos)):
        is_added = find_flag(metadata, f"add_{name}_token", default)
        found.append(find_token(metadata, name, tokens) if is_added else None)
    return around(tokens, *found)


def around(tokens: list[str], first: int | None, last: int | None) -> JSON | None:
    """The post-processor that puts these tokens before and after a text; None where both are."""
    template: list[JSON] = [{"Sequence": {"id": "A", "type_id": 0}}]
    specials: JSON = {}
    for token_id, at in ((first, 0), (last, 1)):
        if token_id is None:
            continue
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
