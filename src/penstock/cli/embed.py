"""`penstock embed MODEL`: lines of text in, from standard input or FILE, one line of JSON per text out.

`{"index": 0, "num_tokens": 3, "embedding": [...]}`, in the order of the lines; of length 1, unless the
checkpoint says otherwise. Lines are read in batches: a long file needs no memory; empty ones are refused.
"""

import argparse
import contextlib
import itertools
import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from penstock.cli.flags import add_engine_flags, engine_config
from penstock.errors import ConfigError, InvalidRequestError

if TYPE_CHECKING:
    from penstock.engine.build import Loaded

LINES_AT_ONCE = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", help="a local folder, an embedded name (penstock models) or a Hugging Face id"
    )
    parser.add_argument(
        "file", nargs="?", default="-", help="text file, one text per line. Default: standard input"
    )
    parser.add_argument(
        "--pooling",
        choices=("last", "mean", "cls"),
        help="the hidden state of the last token, the mean of all, or the first. Default: what the "
        "checkpoint says, else the mean of an encoder and the last of a decoder",
    )
    add_engine_flags(parser)


def run(options: argparse.Namespace) -> int:
    with _opened(options.file) as file:
        _embed(options, (line.rstrip("\n") for line in file))
    return 0


def _embed(options: argparse.Namespace, lines: Iterator[str]) -> None:
    from penstock.engine.llm import LLM

    llm = LLM.from_loaded(_load(options))
    done = 0
    while batch := list(itertools.islice(lines, LINES_AT_ONCE)):
        for number, text in enumerate(batch, done + 1):
            _check(text, number)
        for output in llm.embed(batch, pooling=options.pooling, use_tqdm=False):
            answer = {
                "index": done,
                "num_tokens": len(output.prompt_token_ids),
                "embedding": output.outputs.embedding,
            }
            print(json.dumps(answer))
            done += 1
        sys.stdout.flush()


def _load(options: argparse.Namespace) -> "Loaded":
    from penstock.engine.build import load_model

    loaded = load_model(options.model, engine_config(options))
    for note in loaded.notes:
        print(f"note: {note}", file=sys.stderr)
    return loaded


def _opened(name: str) -> AbstractContextManager[TextIO]:
    """A file that cannot be read is refused before a model is loaded."""
    if name == "-":
        return contextlib.nullcontext(sys.stdin)
    try:
        return Path(name).open(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror}; give a text file that can be read.") from None


def _check(text: str, number: int) -> None:
    if not text:
        raise InvalidRequestError(
            f"line {number:,} is empty and has no embedding; leave such lines out.", param="input"
        )
    for char in text:
        if "\ud800" <= char <= "\udfff":
            raise InvalidRequestError(
                f"line {number:,} is not UTF-8 (byte 0x{ord(char) & 0xFF:02x}); convert it.", param="input"
            )
