"""argparse with one line for a mistake: what is wrong, the nearest right word, exit code 64. For main."""

import argparse
import difflib
from collections.abc import Iterator, Sequence
from typing import NoReturn

from penstock.cli.vllm_flags import NOT_THERE

USAGE_ERROR = 64  # EX_USAGE of sysexits.h, as ConfigError
MAX_SHOWN = 300  # characters of a message: it may repeat what was typed


class Parser(argparse.ArgumentParser):
    """Flags are never abbreviated: a name that is short today may be ambiguous tomorrow."""

    def __init__(self, **options: object) -> None:
        super().__init__(**{"allow_abbrev": False, **options})  # type: ignore[arg-type]  # argparse's own

    def error(self, message: str) -> NoReturn:
        line = " ".join(message.split())
        line = line if len(line) <= MAX_SHOWN else line[:MAX_SHOWN] + "..."
        self.exit(USAGE_ERROR, f"error: {line}; see {self.prog} --help\n")

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Name the first argument that no parser knew, and what may have been meant."""
        word = next((w for w in unknown if w.startswith("-")), unknown[0])
        flag = word.partition("=")[0]
        if flag in NOT_THERE:
            self.error(f"{flag} is not supported: {NOT_THERE[flag]}")
        if not flag.startswith("-"):
            self.error(f"unexpected argument {word!r}; text for a model goes after --prompt or --message")
        known = sorted(set(_flags(self)))
        if flag in known:
            self.error(f"{flag} belongs to another command than this one")
        near = difflib.get_close_matches(flag, known, n=1)
        self.error(f"unknown flag {flag}" + (f"; did you mean {near[0]}?" if near else ""))


def _flags(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from _flags(sub)
