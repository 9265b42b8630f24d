"""docs/cli.md from the parsers themselves: `python -m tools.cli_reference` writes it, a test compares."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from penstock.cli.main import VERBS, make_parser
from penstock.cli.vllm_flags import NOT_NEEDED, NOT_THERE

TARGET = Path(__file__).parent.parent / "docs" / "cli.md"
BEGINNING = """# The command line

<!-- written by `python -m tools.cli_reference`; a test keeps it equal to the parsers -->

Every mistake is one line on standard error, `error: what; why; what to do`, and an exit code
([errors](errors.md)). Flags are never abbreviated. Sizes may have a suffix: `4g`, `512mi`. Engine options are
the same in every command that loads a model, and are keywords of `LLM(...)`; where two spellings stand
together, the second is vLLM's.
"""
ENDING = """
## Environment
| variable | meaning |
|---|---|
| `PENSTOCK_ISA` | run one path of the native kernels: `scalar`, `avx2`, `avx512`, `amx`, `amx-emulated` |
| `PENSTOCK_BREAK` | break row-independence on purpose, so that tests prove that they notice |
| `XDG_CACHE_HOME` | packed weights are kept in `penstock/packed` below it; else below `~/.cache` |
| `PENSTOCK_API_KEY` | a key that clients of the server must bring; `--api-key-file` holds more |
| `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE` | as other Hugging Face tools read them |

None of them is needed for good speed.
"""


def actions_of(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    """(group, action) of everything a user may type, but for help and commands."""
    for group in parser._action_groups:
        for action in group._group_actions:
            if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
                yield str(group.title), action


def table(parser: argparse.ArgumentParser, groups: set[str]) -> list[str]:
    rows = ["| | |", "|---|---|"]
    for group, action in actions_of(parser):
        if group in groups:
            value = (
                "" if action.nargs == 0 or not action.option_strings else f" {action.metavar or ''}".rstrip()
            )
            names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{action.dest.upper()}`"
            shown = f"{names}{f' `{value.strip()}`' if value else ''}".replace("|", "\\|")
            rows.append(f"| {shown} | {(action.help or '').replace('|', chr(92) + '|')} |")
    return [*rows, ""] if len(rows) > 2 else []


def sub_parsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def reference() -> str:
    lines = [BEGINNING]
    own = {"positional arguments", "options"}
    engine: argparse.ArgumentParser | None = None
    for verb, summary in VERBS.items():
        parser = sub_parsers(make_parser(verb))[verb]
        lines += [f"## penstock {verb}", f"{summary[0].upper()}{summary[1:]}.", ""]
        lines += table(parser, own)
        for kind, sub in sub_parsers(parser).items():
            lines += [f"### penstock {verb} {kind}", "", *table(sub, own)]
        if verb == "serve":
            lines += ["Server: the same names stand in the table `server` of `--config`.", ""]
            lines += table(parser, {"server"})
        if verb == "run":
            engine = parser
            lines += ["Sampling: what is not given is what the model's authors suggest.", ""]
            lines += table(parser, {"sampling"})
    assert engine is not None, "run has the engine's options"
    lines += [
        "## Engine options",
        "What is not given, the planner chooses; `penstock doctor MODEL` says why.",
        "",
    ]
    lines += table(engine, {"engine"})
    lines += ["## Flags of vLLM that mean nothing here", "Noted and dropped:", ""]
    lines += [f"- `{flag}`: {why}" for flag, (_, why) in NOT_NEEDED.items()]
    lines += ["", "Refused, because the answer would not be what was asked for:", ""]
    lines += [f"- `{flag}`: {why}" for flag, why in NOT_THERE.items()]
    return "\n".join(lines) + "\n" + ENDING


if __name__ == "__main__":
    TARGET.write_text(reference(), "utf-8")
