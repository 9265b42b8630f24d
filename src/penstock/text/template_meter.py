"""How much a chat template may do: a budget for each rendering, and formulas that price operations before.

Called by template_sandbox. Every value is weighed where it is used, so that no operation, however short to
write down, takes more than a bounded time or memory. No clock: what is refused is a function of template and
messages.
"""

import re
from collections.abc import Collection, ItemsView, Iterable, KeysView, Mapping, Sequence, ValuesView
from contextvars import ContextVar
from typing import Any

from jinja2.utils import Namespace

MAX_CHARS = 1 << 20  # of one value, and of the rendered text
MAX_WORK = 3_000_000  # about a second of a core
MAX_INT_BITS = 1 << 14
CHARS_PER_UNIT = 32
MAX_ATTRIBUTE_CHARS = 256
SCALARS = frozenset({bool, float, type(None)})


class TemplateLimitError(Exception):
    """A template outgrew one of its limits."""


class Meter:
    """The budget of one rendering."""

    __slots__ = ("left",)

    def __init__(self, work: int = MAX_WORK) -> None:
        self.left = work

    def spend(self, units: int) -> None:
        self.left -= units
        if self.left < 0:
            raise TemplateLimitError(f"more than {MAX_WORK:,} units of work")

    def weigh(self, value: Any) -> int:  # Any: template values
        """Characters and items of `value`, whatever it nests; paid for, refused where they are too many."""
        kind = type(value)
        if kind is str:
            size = len(value)
            bound(size)
            self.left -= size // CHARS_PER_UNIT
        elif kind in SCALARS:
            return 0
        elif kind is int:
            bound_int(value)
            return 0
        else:
            size = self._weigh_deep(value)
        self.spend(1)
        return size

    def _weigh_deep(self, value: object) -> int:
        size = num_chars = 0
        stack: list[Iterable[object]] = [(value,)]
        while stack:
            for item in stack.pop():
                kind = type(item)
                if kind is str:
                    num_chars += len(item)  # type: ignore[arg-type]
                elif kind is int:
                    bound_int(item)  # type: ignore[arg-type]
                elif kind not in SCALARS:
                    items = _items(item)
                    size += len(items)
                    bound(size)
                    self.spend(2 + len(items))
                    if not isinstance(items, range):
                        stack.append(items)
            bound(size + num_chars)
        self.spend(num_chars // CHARS_PER_UNIT)
        return size + num_chars


def _items(value: object) -> Collection[object]:
    """What a value shows when it is printed or walked."""
    if type(value) is list or type(value) is tuple:
        return value
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    if isinstance(value, str):  # Markup
        return (str(value),)
    if isinstance(value, Namespace):
        return (object.__getattribute__(value, "_Namespace__attrs"),)
    if isinstance(value, list | tuple | set | frozenset | range | KeysView | ValuesView | ItemsView):
        return value
    return ()


METER: ContextVar[Meter] = ContextVar("METER")


def bound(size: int) -> None:
    if size > MAX_CHARS:
        raise TemplateLimitError(f"a value of {size:,} characters or items")


def weigh(*values: Any) -> int:  # Any: template values
    """The weight of all `values`, each within its bound."""
    meter = METER.get()
    return sum([meter.weigh(value) for value in values])


def bound_int(value: int) -> None:
    if value.bit_length() > MAX_INT_BITS:
        raise TemplateLimitError(f"a number of {value.bit_length():,} bits")


def price_binary(operator: str, left: Any, right: Any) -> None:  # Any: template values
    """Refuse `left operator right` where its result would be out of proportion."""
    METER.get().spend(8)
    if type(left) is int and type(right) is int and operator in "+-":
        return
    size = weigh(left, right)
    if operator == "+":
        bound(size)
    elif operator == "*":
        for text, times in ((left, right), (right, left)):
            if isinstance(text, str | list | tuple) and isinstance(times, int):
                bound(max(1, weigh(text)) * max(0, times))
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        if left.bit_length() * abs(right) > MAX_INT_BITS:
            raise TemplateLimitError(f"a power of {left.bit_length() * abs(right):,} bits")
    elif operator == "%" and isinstance(left, str):
        price_format(left, right if isinstance(right, tuple) else (right,))


def price_format(text: str, args: Sequence[Any]) -> None:  # Any: template values
    """Widths and precisions written in `text` or taken from `args`, and an argument shown many times."""
    size = len(text) + sum(int(digits[:9]) for digits in re.findall(r"\d+", text))
    is_nested = "*" in text or re.search(r"\{[^{}]*\{", text) is not None
    for arg in args:
        size += weigh(arg) * max(text.count("{"), text.count("%"))
        if is_nested and isinstance(arg, int):
            size += abs(arg) * (text.count("*") + text.count("{"))
    bound(size)


def price_method(text: str, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse a method of a string whose result would be out of proportion. Any: template values."""
    values = [*args, *kwargs.values()]
    size = weigh(text, *values)
    if method in ("ljust", "rjust", "center", "zfill", "expandtabs"):
        width = max((abs(value) for value in values if isinstance(value, int)), default=8)
        bound(size + width * (text.count("\t") if method == "expandtabs" else 1))
    elif method == "replace" and len(args) >= 2:
        price_replace(text, str(args[0]), str(args[1]))
    elif method == "join" and args and hasattr(args[0], "__len__"):
        bound(size + len(text) * len(args[0]))
    elif method in ("format", "format_map"):
        price_format(text, [*args, *kwargs.values()])


def price_replace(text: str, old: str, new: str) -> None:
    weigh(text, old, new)
    bound(len(text) + (text.count(old) if old else len(text) + 1) * len(new))


def price_indent(text: str, width: object) -> None:
    weigh(text)
    columns = len(width) if isinstance(width, str) else abs(width) if isinstance(width, int) else 0
    bound(len(text) + columns * (1 + len(text.splitlines())))


def price_attribute(values: Sequence[object]) -> None:
    """A path of attributes is walked for every item, so that it must be short."""
    if any(isinstance(value, str) and len(value) > MAX_ATTRIBUTE_CHARS for value in values):
        raise TemplateLimitError(f"the name of an attribute of over {MAX_ATTRIBUTE_CHARS} characters")
