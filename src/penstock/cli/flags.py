"""EngineConfig as flags: a field is declared once, in config.py; its vLLM spelling is an alias."""

import argparse
import typing

import msgspec

from penstock.config import EngineConfig, from_mapping, option_of

SIZES = {"k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}
MAX_DIGITS = 24  # more are no size of anything; Python itself refuses to read thousands


def number(text: str) -> int | str:
    """An int, perhaps with a size suffix (4g, 512mi), or "auto"; other text is left for EngineConfig.

    >>> number("4g"), number("512Mi"), number("auto"), number("2048")
    (4000000000, 536870912, 'auto', 2048)
    """
    lower = text.lower()
    for suffix in sorted(SIZES, key=len, reverse=True):
        head = lower.removesuffix(suffix)
        if head != lower and head.isdecimal() and len(head) <= MAX_DIGITS:
            return int(head) * SIZES[suffix]
    return int(text) if len(text) <= MAX_DIGITS and lower.removeprefix("-").isdecimal() else text


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """One flag per field of EngineConfig, in a group of its own."""
    group = parser.add_argument_group(
        "engine", "what is not given, the planner chooses (penstock doctor MODEL says why)"
    )
    for field in msgspec.structs.fields(EngineConfig):
        option, kind = option_of(field.name), typing.get_type_hints(EngineConfig)[field.name]
        flags = list(dict.fromkeys([f"--{field.name.replace('_', '-')}", *option.vllm]))
        if kind is bool:
            group.add_argument(
                *flags,
                dest=field.name,
                action=argparse.BooleanOptionalAction,
                default=None,
                help=option.help,
            )
            continue
        takes_number = int in typing.get_args(kind)
        group.add_argument(
            *flags,
            dest=field.name,
            default=None,
            type=number if takes_number else str,
            metavar="|".join(option.choices) if option.choices else ("N" if takes_number else "NAME"),
            help=option.help if field.default is None else f"{option.help} Default: {field.default}.",
        )


def engine_config(arguments: argparse.Namespace) -> EngineConfig:
    """The flags that were given, checked."""
    names = [field.name for field in msgspec.structs.fields(EngineConfig)]
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    return from_mapping(given)
