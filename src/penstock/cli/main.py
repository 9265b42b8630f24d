"""`penstock`: finds the verb, runs it, turns every expected error into one line and an exit code."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from penstock.errors import PenstockError

VERBS = {
    "run": "complete or chat in the terminal",
    "bench": "measure latency or throughput against this machine's floor",
    "doctor": "what this machine and build can do, and what would be planned for a model",
    "models": "models that are embedded or on this disk",
}


class Parser(argparse.ArgumentParser):
    """argparse, with one line for a mistake: what, and where to look."""

    def error(self, message: str) -> NoReturn:
        self.exit(64, f"error: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code; 130 after Ctrl-C, as shells expect."""
    parser = Parser(prog="penstock", description="LLM inference, exact by default.")
    parser.add_argument("--version", action="store_true", help="print the version and leave")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=Parser)
    given = list(sys.argv[1:] if arguments is None else arguments)
    chosen = next((word for word in given if not word.startswith("-")), None)
    for verb, summary in VERBS.items():
        sub = verbs.add_parser(verb, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if verb == chosen:  # only the verb that runs is imported: the others' modules cost time
            importlib.import_module(f"penstock.cli.{verb}").add_arguments(sub)
    options = parser.parse_args(given)
    if options.version:
        from importlib.metadata import version

        print(f"penstock {version('penstock')}")
        return 0
    if options.verb is None:
        parser.print_help()
        return 64
    try:
        code: int = importlib.import_module(f"penstock.cli.{options.verb}").run(options)
        sys.stdout.flush()
    except PenstockError as error:
        line = " ".join(str(error).split())
        code_name = getattr(error, "code", None)
        label = f"model_load: {code_name}: " if code_name and error.exit_code == 65 else ""
        print(f"error: {label}{line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # `penstock ... | head`: the reader has left; nothing to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return code


if __name__ == "__main__":
    sys.exit(main())
