"""`penstock bench quality MODEL`: what each lossy setting costs this model, measured on a text.

The default text is the source of this package's scheduler and engine, which every install has; a text like
the one the model will meet says more.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from penstock.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a local folder, an embedded name or a Hugging Face id")
    parser.add_argument(
        "--text", type=Path, metavar="FILE", help="UTF-8 text to measure on. Default: this package's source"
    )
    parser.add_argument(
        "--max-tokens", type=int, default=1536, metavar="N", help="tokens of the text. Default: 1536"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="append the rows to FILE, as JSON lines")


def run(options: argparse.Namespace) -> int:
    from penstock.backends.cpu.probe import isas
    from penstock.bench.quality import Quality, measure, table
    from penstock.bench.record import append, stamp

    if options.max_tokens < 2:
        raise ConfigError(f"--max-tokens is {options.max_tokens}; at least 2 tokens are needed to compare.")
    rows: list[Quality] = []
    for row in measure(options.model, _text(options.text), max_tokens=options.max_tokens):
        rows.append(row)
        if options.out:
            found = {"model": options.model, "text": str(options.text or "penstock"), **asdict(row)}
            append(options.out, stamp((isas() or [""])[0], 0) | found)
    print("\n".join(table(rows)))
    print(json.dumps({row.name: [row.kl, row.top1, row.perplexity] for row in rows}))
    return 0


def _text(path: Path | None) -> str:
    if path is None:
        package = Path(__file__).parents[1]
        return "".join(
            (package / name).read_text("utf-8") for name in ("scheduler/scheduler.py", "kv/manager.py")
        )
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--text {path}: cannot be read as UTF-8 text ({error}); give another file."
        ) from None
