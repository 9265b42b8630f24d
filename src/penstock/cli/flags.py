"""Flags from EngineConfig: a field is declared once, in config.py; here it becomes a flag, its vLLM spelling an alias."""

import argparse
import types
import typing
from collections.abc import Sequence
from typing import Any

import msgspec

from penstock.config import EngineConfig, Option, from_mapping

SIZES = {"k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}


def number(text: str) -> int | str:
    """An int, perhaps with a size suffix (4g, 512mi), or "auto"; other text is left for EngineConfig to refuse.

    >>> number("4g"), number("512Mi"), number("auto"), number("2048")
    (4000000000, 536870912, 'auto', 2048)
    """
    lower = text.lower()
    for suffix in sorted(SIZES, key=len, reverse=True):
        head = lower.removesuffix(suffix)
        if head != lower and head.isdigit():
            return int(head) * SIZES[suffix]
    return int(text) if lower.removeprefix("-").isdigit() else text


def _options() -> list[tuple[str, Option, Any, Any]]:  # Any: a field's type and default
    found = []
    for name, hint in typing.get_type_hints(EngineConfig, include_extras=True).items():
        field = next(f for f in msgspec.structs.fields(EngineConfig) if f.name == name)
        meta = next(m for m in hint.__metadata__ if isinstance(m, msgspec.Meta))
        assert meta.extra is not None
        found.append((name, meta.extra["option"], hint.__origin__, field.default))
    return found


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """One flag per field of EngineConfig, in a group of its own."""
    group = parser.add_argument_group(
        "engine", "what is not given, the planner chooses (penstock doctor MODEL says why)"
    )
    for name, option, kind, default in _options():
        flags = [f"--{name.replace('_', '-')}", *option.vllm]
        if kind is bool:
            group.add_argument(
                *flags, dest=name, action=argparse.BooleanOptionalAction, default=None, help=option.help
            )
            continue
        takes_number = int in (kind, *typing.get_args(kind)) or kind is types.UnionType
        group.add_argument(
            *flags,
            dest=name,
            default=None,
            type=number if takes_number and str not in typing.get_args(kind) else str,
            metavar="|".join(option.choices) if option.choices else ("N" if takes_number else "NAME"),
            help=f"{option.help} Default: {default}." if default is not None else option.help,
        )


def engine_config(arguments: argparse.Namespace) -> EngineConfig:
    """The flags that were given, checked."""
    given = {
        name: getattr(arguments, name)
        for name, *_ in _options()
        if getattr(arguments, name, None) is not None
    }
    return from_mapping(given)


def field_names() -> Sequence[str]:
    return [name for name, *_ in _options()]
