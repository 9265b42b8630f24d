"""`penstock explain NAME`: one flag, field or limit: what it means, its default, exact or not, its names.

Everything comes from the declarations in config.py and engine/serving.py, and from the list of vLLM's flags.
"""

import argparse
import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from penstock.cli.flags import flags_of
from penstock.cli.vllm_flags import NOT_NEEDED, NOT_THERE
from penstock.config import EngineConfig, ServerConfig, option_of
from penstock.errors import ConfigError

# values that make answers differ from the checkpoint's own; every other option is exact
LOSSY = {
    "weights": "int8 and int4 approximate the checkpoint's weights; auto is exact",
    "dtype": "bfloat16 for an fp16 checkpoint drops bits; auto is exact",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that can be set. `names`: everything it may be asked for by."""

    field: str
    table: str
    names: tuple[str, ...]
    help: str
    default: Any  # Any: as declared
    choices: tuple[str, ...] = ()

    def lines(self) -> Iterator[str]:
        yield f"{', '.join(self.names[1:]) or self.field}"
        yield f"  {self.help}"
        if self.choices:
            yield f"  one of      {', '.join(self.choices)}"
        shown = "none" if self.default in (None, ()) else self.default
        yield f"  default     {str(shown).lower() if isinstance(shown, bool) else shown}"
        yield f"  answers     {self._effect()}"
        yield f"  in --config [{self.table}] {self.field} = ..."

    def _effect(self) -> str:
        if self.table == "engine":
            return LOSSY.get(self.field, "the same bits, whatever it is set to")
        return "the same bits, whatever it is set to; it decides what is accepted and when it ends"


def entries() -> list[Entry]:
    from penstock.engine.serving import Limits

    made = []
    for table, kind in (("engine", EngineConfig), ("server", ServerConfig), ("limits", Limits)):
        for field in msgspec.structs.fields(kind):
            option = option_of(field.name, kind)
            flags = flags_of(field.name, option) if table != "limits" else []
            names = (field.name, *flags)
            made.append(Entry(field.name, table, names, option.help, field.default, option.choices))
    return made


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name",
        nargs="?",
        help="a flag without its dashes, a field of --config or a limit; without it, all are listed",
    )


def run(options: argparse.Namespace) -> int:
    known = entries()
    if options.name is None:
        for entry in known:
            print(f"{entry.table:7} {entry.field:22} {entry.help}")
        return 0
    word = options.name.lstrip("-").replace("_", "-")
    for entry in known:
        if word in (name.lstrip("-").replace("_", "-") for name in entry.names):
            print("\n".join(entry.lines()))
            return 0
    for flag, why in [*NOT_THERE.items(), *((f, w) for f, (_, w) in NOT_NEEDED.items())]:
        if word == flag.lstrip("-"):
            verdict = "is refused" if flag in NOT_THERE else "is noted and dropped"
            print(f"{flag} (of vLLM) {verdict}: {why}.")
            return 0
    names = sorted({name.lstrip("-") for entry in known for name in entry.names})
    near = difflib.get_close_matches(word, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else " penstock explain lists everything."
    raise ConfigError(f"there is no flag, field or limit {options.name!r:.60}.{hint}")
