"""EngineConfig as flags: a field is declared once, in config.py; its vLLM spelling is an alias."""

import argparse
import typing

import msgspec

from penstock.config import EngineConfig, Option, from_mapping, option_of

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


def fraction(text: str) -> float | str:
    """A float; other text is left for EngineConfig.

    >>> fraction("0.5"), fraction("half")
    (0.5, 'half')
    """
    try:
        return float(text)
    except ValueError:
        return text


def texts(text: str) -> tuple[str, ...]:
    """
    >>> texts("a, b"), texts("")
    (('a', 'b'), ())
    """
    return tuple(part.strip() for part in text.split(",") if part.strip())


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """One flag per field of EngineConfig, in a group of its own."""
    add_flags(
        parser,
        EngineConfig,
        "engine",
        "what is not given, the planner chooses (penstock doctor MODEL says why)",
    )


def add_flags(
    parser: argparse.ArgumentParser, config: type[msgspec.Struct], title: str, description: str
) -> None:
    """One flag per field of `config`; those that were not given stay None."""
    group = parser.add_argument_group(title, description)
    for field in msgspec.structs.fields(config):
        option, kind = option_of(field.name, config), typing.get_type_hints(config)[field.name]
        flags = flags_of(field.name, option)
        if kind is bool:
            group.add_argument(
                *flags,
                dest=field.name,
                action=argparse.BooleanOptionalAction,
                default=None,
                help=option.help,
            )
            continue
        is_list = kind == tuple[str, ...]
        takes_number = kind is int or int in typing.get_args(kind)
        group.add_argument(
            *flags,
            dest=field.name,
            default=None,
            type=texts if is_list else fraction if kind is float else number if takes_number else str,
            metavar=_metavar(option, takes_number=takes_number or kind is float, is_list=is_list),
            help=option.help if field.default in (None, ()) else f"{option.help} Default: {field.default}.",
        )


def flags_of(name: str, option: Option) -> list[str]:
    """How a field is written on the command line: our spelling first, then vLLM's."""
    return list(dict.fromkeys([f"--{name.replace('_', '-')}", *option.vllm]))


def _metavar(option: Option, *, takes_number: bool, is_list: bool) -> str:
    if option.choices:
        return "|".join(option.choices)
    return "N" if takes_number else "NAME,NAME" if is_list else "NAME"


def given_flags(
    arguments: argparse.Namespace, config: type[msgspec.Struct]
) -> dict[str, typing.Any]:  # Any: as typed, not checked yet
    """The fields of `config` that were given."""
    names = [field.name for field in msgspec.structs.fields(config)]
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}


def engine_config(arguments: argparse.Namespace) -> EngineConfig:
    """The flags that were given, checked."""
    return from_mapping(given_flags(arguments, EngineConfig))
