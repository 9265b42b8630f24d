"""Strict JSON: what two parsers could read differently is refused. Called for every request body.

Refused: bytes that are no UTF-8, duplicate keys, NaN and Infinity (and 1e400), nesting beyond the limit, NUL
and lone surrogates in texts. Python's own parser, because msgspec keeps the last of two equal keys.
"""

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from penstock.errors import InvalidRequestError

NO_TEXT = re.compile("[\0\ud800-\udfff]")
BIG_BODY_BYTES = 64 << 10  # parsed in a worker thread


def read_json(body: bytes, *, max_depth: int) -> Any:  # Any: foreign JSON, checked by its reader
    """The value of a JSON text. InvalidRequestError: invalid_json; invalid_value for what no text holds."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _refused(f"the body is no UTF-8 at byte {error.start:,}", "send UTF-8") from None
    try:
        value = DECODER.decode(text)
    except RecursionError:
        raise _too_deep(max_depth) from None
    except json.JSONDecodeError as error:
        raise _refused(
            f"the body is no JSON ({error.msg}, character {error.pos:,})", "send one JSON object"
        ) from None
    except ValueError:  # an integer of more digits than Python reads in linear time
        raise _refused("a number in the body has thousands of digits", "no parameter needs them") from None
    _check_depth(value, max_depth)
    if "\\u" in text:
        _check_texts(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:  # Any: foreign JSON
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [key for key, _ in pairs]
        key = next(key for key in names if names.count(key) > 1)
        raise _refused(f"the key {key!r:.60} stands twice in one object", "readers would differ on it")
    return made


def _constant(name: str) -> NoReturn:
    raise _refused(f"{name} is no JSON number", "send a finite number")


def _real(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise _refused(f"the number {digits:.40} is too large", "send one that a double holds")
    return value


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_real)


def _check_depth(value: object, max_depth: int) -> None:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(max_depth):
        if not level:
            return
        children = (node.values() if type(node) is dict else node for node in level)
        level = [c for c in itertools.chain.from_iterable(children) if type(c) in (dict, list)]
    if level:
        raise _too_deep(max_depth)


def _check_texts(value: object) -> None:
    entries: list[tuple[str, object]] = list(value.items()) if isinstance(value, dict) else [("", value)]
    for key, entry in entries:
        for text in (key, *_texts(entry)):
            if NO_TEXT.search(text):
                raise InvalidRequestError(
                    f"{key!r:.60} holds NUL or half of a surrogate pair; no text holds them. Leave them out.",
                    param=key if key.isprintable() else "",
                )


def _texts(value: object) -> Iterator[str]:
    left = [value]
    while left:
        node = left.pop()
        if isinstance(node, str):
            yield node
        elif isinstance(node, dict):
            yield from node
            left.extend(node.values())
        elif isinstance(node, list):
            left.extend(node)


def _too_deep(max_depth: int) -> InvalidRequestError:
    return _refused(f"the body is nested more than {max_depth} deep", "send a flatter one")


def _refused(what: str, do: str) -> InvalidRequestError:
    return InvalidRequestError(f"{what}; {do}.", param="", code="invalid_json")
