"""`penstock`: finds the verb, runs it, turns every expected error into one line and an exit code.

The codes are those of sysexits.h (docs/errors.md lists them); a traceback is always a defect.
"""

import difflib
import importlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from penstock.cli.parser import USAGE_ERROR, Parser
from penstock.cli.vllm_flags import without_not_needed
from penstock.errors import ModelLoadError, OutOfMemoryError, PenstockError

VERBS = {
    "run": "complete or chat in the terminal",
    "serve": "answer over HTTP, as OpenAI's and Anthropic's clients expect it",
    "embed": "lines of text in, their embeddings as JSON lines out",
    "batch": "answer a file of requests, as OpenAI's batch API does",
    "bench": "measure latency or throughput against this machine's floor",
    "doctor": "what this machine and build can do, and what would be planned for a model",
    "models": "models that are embedded or on this disk",
    "explain": "what a flag, a field or a limit means, its default and why",
}
IO_ERROR, INTERRUPTED, READER_LEFT = 74, 130, 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code; 130 after Ctrl-C, as shells expect."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    _prepare_streams()
    try:
        return _run(given)
    except PenstockError as error:
        return _fail(_line(error), error.exit_code)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `penstock ... | head`: the reader has left; nothing to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_LEFT
    except MemoryError:
        line = "memory ran out; nothing more was done. Free some, or ask for less: a shorter --max-context."
        return _fail(line, OutOfMemoryError.exit_code)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return _fail(f"{error.strerror or error}{where}; nothing more was written.", IO_ERROR)


def _prepare_streams() -> None:
    """Streams that the caller closed are empty ones; text that cannot be read or shown is no traceback."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 for good
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace"), (sys.stderr, "replace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def make_parser(verb: str | None) -> Parser:
    """The parser of all verbs. Only `verb` has its flags: the modules of the others cost time to import."""
    parser = Parser(prog="penstock", description="LLM inference, exact by default.")
    parser.add_argument("--version", action="store_true", help="print the version and leave")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=Parser)
    for name, summary in VERBS.items():
        sub = verbs.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name == verb:
            importlib.import_module(f"penstock.cli.{name}").add_arguments(sub)
    return parser


def _run(given: list[str]) -> int:
    chosen = next((word for word in given if not word.startswith("-")), None)
    parser = make_parser(chosen)
    if chosen is not None and chosen not in VERBS:
        parser.error(_unknown_verb(chosen))
    options, unknown = parser.parse_known_args(without_not_needed(given))
    if unknown:
        parser.refuse(unknown)
    if options.version:
        from penstock.env import penstock_version

        print(f"penstock {penstock_version()}")
        return 0
    if options.verb is None:
        parser.print_help(sys.stderr)
        return USAGE_ERROR
    code: int = importlib.import_module(f"penstock.cli.{options.verb}").run(options)
    sys.stdout.flush()
    return code


def _unknown_verb(word: str) -> str:
    near = difflib.get_close_matches(word, VERBS, n=1)
    return f"no command {word!r}; " + (
        f"did you mean {near[0]}?" if near else f"there are {', '.join(VERBS)}"
    )


def _line(error: PenstockError) -> str:
    text = " ".join(str(error).split())
    return f"model_load: {error.code}: {text}" if isinstance(error, ModelLoadError) else text


def _fail(line: str, code: int) -> int:
    print(f"error: {line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
