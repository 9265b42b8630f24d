"""What tokenizer.json must be before the library may read it.

Called by tokenizer. Refuses what the library lets pass: ids used twice, and patterns that can take forever.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from penstock.errors import ModelLoadError


def read_json(path: Path) -> dict[str, Any]:  # Any: foreign JSON
    try:
        text = path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise _not_json(path.name, error) from None
    return parse_json_text(text, path.name)


def parse_json_text(text: str, name: str) -> dict[str, Any]:  # Any: foreign JSON
    """The object that `text` is; `name` is what an error calls it."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _not_json(name, error) from None
    if not isinstance(value, dict):
        raise ModelLoadError("bad_tokenizer", f"{name}: is not a JSON object; download it again.")
    return value


def _not_json(name: str, error: Exception) -> ModelLoadError:
    return ModelLoadError("bad_tokenizer", f"{name}: cannot be read as JSON ({error}); download it again.")


def check_tokenizer(content: Mapping[str, Any]) -> None:  # Any: foreign JSON
    """Refuse what the library reads without complaint."""
    model = content.get("model")
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    pairs = list(vocabulary.items()) if isinstance(vocabulary, Mapping) else []
    added = [token for token in content.get("added_tokens") or () if isinstance(token, Mapping)]
    pairs += [(token.get("content"), token.get("id")) for token in added]
    tokens: dict[object, object] = {}
    ids: dict[object, object] = {}
    for token, token_id in pairs:
        if not isinstance(token, str) or not isinstance(token_id, int):
            raise ModelLoadError("bad_tokenizer", "tokenizer.json: tokens are not texts with numbers as ids.")
        if tokens.setdefault(token_id, token) != token:
            raise ModelLoadError(
                "bad_tokenizer",
                f"tokenizer.json: id {token_id} is {tokens[token_id]!r} and {token!r}; download it again.",
            )
        if ids.setdefault(token, token_id) != token_id:
            raise ModelLoadError(
                "bad_tokenizer",
                f"tokenizer.json: {token!r} has the ids {ids[token]} and {token_id}; download it again.",
            )
    for pattern in _patterns([content.get(key) for key in ("normalizer", "pre_tokenizer", "decoder")]):
        if _is_explosive(pattern):
            raise ModelLoadError(
                "bad_tokenizer",
                f"tokenizer.json: the pattern {pattern[:80]!r} repeats a repetition, which can take forever; "
                f"rewrite it without.",
            )


def _patterns(value: object) -> Iterator[str]:
    """Every regular expression in a part of tokenizer.json."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            if key == "Regex" and isinstance(child, str):
                yield child
            else:
                yield from _patterns(child)
    elif isinstance(value, list):
        for child in value:
            yield from _patterns(child)


def _is_explosive(pattern: str) -> bool:
    r"""Whether a group that repeats or offers a choice is itself repeated without bound.

    >>> _is_explosive("(a+)+$"), _is_explosive(" ?[^\\s(]+|\\s+(?!\\S)")
    (True, False)
    """
    plain = re.sub(r"\\[pP]\{[^}]*\}|\\.", "x", pattern)
    plain = re.sub(r"\[[^\]]*\]", "x", plain)
    while group := re.search(r"\(([^()]*)\)", plain):
        repeats = re.search(r"[+*|]|\{\d*,\}", group.group(1)) is not None
        if repeats and re.match(r"[+*]|\{\d*,\}", plain[group.end() :]):
            return True
        plain = plain[: group.start()] + ("x+" if repeats else "x") + plain[group.end() :]
    return False
