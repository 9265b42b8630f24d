"""Strict reading of config.json: every key is read, expected, ignored with a reason, or refused by name.

Families get a ConfigReader and ask it for what they know; `finish()` refuses whatever is left, because a
key that nobody understood may change what the model computes. All refusals are ModelLoadError
(code bad_config), one line.
"""

import difflib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from penstock.errors import ModelLoadError

T = TypeVar("T", int, float, bool, str)
JSONObject = Mapping[str, Any]  # Any: what somebody wrote, checked by the reader

MAX_FILE_BYTES: Final = 4 << 20
LARGEST: Final = 2.0**63  # of any number, where a reader gives no bound of its own
_MAX_SHOWN: Final = 60  # characters of an offending value that a message repeats


def read_json(path: Path) -> JSONObject:
    """The object in a JSON file. NaN, duplicate keys, absurd sizes and depths are refused."""
    values = _read(path)
    if not isinstance(values, dict):
        raise _refusal(f"{path} holds {show(values)}, not a JSON object; download it again.")
    return values


def read_json_list(path: Path) -> list[JSONObject]:
    """The list of objects in a JSON file; the same is refused."""
    values = _read(path)
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise _refusal(f"{path} holds {show(values)}, not a list of JSON objects; download it again.")
    return values


def _read(path: Path) -> object:
    name = path.name
    if not path.is_file():
        raise ModelLoadError("bad_config", f"{path} is missing or not a file; a model folder needs a {name}.")
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise _refusal(f"{path} is larger than {MAX_FILE_BYTES} bytes; this is no {name}.")
        text = path.read_bytes().decode("utf-8")
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unique)
    except OSError as error:
        raise ModelLoadError("io_error", f"{path} cannot be read: {error.strerror}.") from None
    except (
        ValueError,
        RecursionError,
    ) as error:  # bad UTF-8, bad JSON, a number of 5000 digits, a depth bomb
        raise _refusal(f"{path} is not valid JSON: {show(error)}; download it again.") from None


def show(value: object) -> str:
    """A value for a message: one line, not long."""
    try:
        text = " ".join(str(value).split()) if isinstance(value, Exception) else json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."


def _refusal(message: str) -> ModelLoadError:
    return ModelLoadError("bad_config", message)


def _no_constant(text: str) -> float:
    if text == "Infinity":  # Python writes it; whoever reads the key says whether it may be
        return math.inf
    raise ValueError(f"{text} is no JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:  # Any: JSON
    values = dict(pairs)
    if len(values) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return values


class ConfigReader:
    """One JSON object, and which of its keys have been accounted for. `null` counts as absent."""

    def __init__(self, values: JSONObject, *, name: str = "config.json", prefix: str = "") -> None:
        self._values = values
        self._name = name
        self._prefix = prefix  # "rope_scaling." for a nested object
        self._accounted: set[str] = set()

    def __contains__(self, key: str) -> bool:
        """Whether the key is there, be it null."""
        return key in self._values

    def get(
        self, key: str, kind: type[T], default: T | None = None, *, least: float = 1, most: float = LARGEST
    ) -> T:
        """The value of `key`; `default` if it is absent and there is one. Numbers lie in [least, most]."""
        value = self.find(key, kind, least=least, most=most)
        if value is not None:
            return value
        if default is None:
            near = self._near(key)
            raise self.refuse(key, f"is missing{near}; the model's shape is not known without it")
        return default

    def find(self, key: str, kind: type[T], *, least: float = 1, most: float = LARGEST) -> T | None:
        """The value of `key`, or None if it is absent."""
        self._accounted.add(key)
        value = self._values.get(key)
        if value is None:
            return None
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (is_number if kind is float else type(value) is kind):
            wanted = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}[kind]
            raise self.refuse(key, f"is {show(value)}; it must be {wanted}")
        if is_number and not least <= value <= most:  # NaN lies nowhere
            raise self.refuse(key, f"is {show(value)}; it must lie between {least:g} and {most:g}")
        return kind(value)

    def get_or_null(
        self, key: str, kind: type[T], default: T | None, *, least: float = 1e-6, most: float = LARGEST
    ) -> T | None:
        """The value of `key`; None if it is null, `default` if it is absent."""
        return self.find(key, kind, least=least, most=most) if key in self else default

    def expect(self, key: str, *allowed: object, why: str) -> None:
        """Refuse any value but these. Absent is allowed: it means the default, which is one of them."""
        self._accounted.add(key)
        value = self._values.get(key)
        if value is not None and not any(type(value) is type(a) and value == a for a in allowed):
            wanted = " or ".join(show(a) for a in allowed)
            raise self.refuse(key, f"is {show(value)}; only {wanted} is supported: {why}")

    def refuse_if_present(self, key: str, why: str) -> None:
        """Refuse the key whatever it says."""
        self._accounted.add(key)
        if self._values.get(key) is not None:
            raise self.refuse(key, f"is set to {show(self._values[key])}: {why}")

    def ignore(self, *keys: str, why: str) -> None:
        """These keys do not change what the model computes, and `why`."""
        assert why, "a key is ignored for a reason"
        self._accounted.update(keys)

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        """A list of exactly `count` positive numbers."""
        values = self._list(key)
        good = [v for v in values if type(v) in {int, float} and 0 < v < LARGEST]
        if len(good) != len(values) or len(values) != count:
            raise self.refuse(key, f"must be a list of {count} positive numbers, one per pair of rotary dims")
        return tuple(float(v) for v in good)

    def interval(self, key: str, default: tuple[float, float]) -> tuple[float, float]:
        """Two numbers, the first not negative and not above the second, which may be infinite."""
        self._accounted.add(key)
        if self._values.get(key) is None:
            return default
        ends = [math.inf if end == {"__float__": "Infinity"} else end for end in self._list(key)]
        are_numbers = len(ends) == 2 and all(type(end) in {int, float} for end in ends)
        if not are_numbers or not 0 <= ends[0] <= ends[1]:
            raise self.refuse(key, f"is {show(self._values[key])}; it must be a list of two ends")
        return float(ends[0]), float(ends[1])

    def indices(self, key: str, *, below: int) -> tuple[int, ...]:
        """A list of whole numbers below `below`; empty if it is absent."""
        self._accounted.add(key)
        values = [] if self._values.get(key) is None else self._list(key)
        if any(type(value) is not int or not 0 <= value < below for value in values):
            raise self.refuse(key, f"must be a list of whole numbers below {below}")
        return tuple(values)

    def flags(self, key: str, count: int) -> tuple[bool, ...] | None:
        """A list of exactly `count` zeros and ones, or None if it is absent."""
        self._accounted.add(key)
        if self._values.get(key) is None:
            return None
        values = self._list(key)
        if len(values) != count or any(value not in (0, 1) for value in values):
            raise self.refuse(key, f"must be a list of {count} zeros and ones, one per layer")
        return tuple(map(bool, values))

    def layer_types(self, num_layers: int, *allowed: str) -> tuple[str, ...] | None:
        """The kind of every layer, or None if it is not said."""
        if self._values.get("layer_types") is None:
            self._accounted.add("layer_types")
            return None
        kinds = self._list("layer_types")
        for kind in kinds:
            if kind not in allowed:
                raise self.refuse("layer_types", f"holds {show(kind)}; supported are {', '.join(allowed)}")
        if len(kinds) != num_layers:
            raise self.refuse("layer_types", f"has {len(kinds)} entries for {num_layers} layers")
        return tuple(kinds)

    def nested(self, key: str, defaults: JSONObject | None = None) -> "ConfigReader | None":
        """A reader of the object under `key`, or None if it is absent. It wants its own `finish()`.

        `defaults`: what the object says of keys that it leaves out.
        """
        self._accounted.add(key)
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.refuse(key, f"is {show(value)}; it must be an object")
        values = {**(defaults or {}), **value}
        return ConfigReader(values, name=self._name, prefix=f"{self._prefix}{key}.")

    def finish(self) -> None:
        """Refuse the first key that nobody accounted for."""
        for key in self._values:
            if key not in self._accounted:
                near = difflib.get_close_matches(key, sorted(self._accounted), n=1, cutoff=0.8)
                hint = f" (did the author mean {near[0]!r}?)" if near else ""
                why = "not known for this architecture and may change what it computes"
                raise self.refuse(key, f"is {why}{hint}; remove it only if you know that it does not matter")

    def refuse(self, key: str, problem: str) -> ModelLoadError:
        """The error to raise about `key`."""
        return _refusal(f"{self._name} key {show(self._prefix + key)} {problem}.")

    def _list(self, key: str) -> list[Any]:  # Any: JSON, checked by the caller
        self._accounted.add(key)
        value = self._values.get(key)
        if not isinstance(value, list):
            raise self.refuse(key, f"is {show(value)}; it must be a list")
        return value

    def _near(self, key: str) -> str:
        unread = [k for k in self._values if k not in self._accounted]
        near = difflib.get_close_matches(key, unread, n=1)
        return f" (there is {near[0]!r})" if near else ""
