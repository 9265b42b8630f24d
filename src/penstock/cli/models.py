"""`penstock models`: what can be named without a download."""

import argparse
import json
from pathlib import Path

from penstock.engine.locate import cached_models, embedded_models


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object per line")


def run(options: argparse.Namespace) -> int:
    rows = [(name, "embedded", path) for name, path in embedded_models().items()]
    rows += [(name, "cached", path) for name, path in cached_models().items()]
    if options.json:
        for name, kind, path in rows:
            print(json.dumps({"model": name, "kind": kind, "bytes": _bytes(path), "path": str(path)}))
        return 0
    for name, kind, path in rows:
        print(f"{name:44} {kind:9} {_bytes(path) / 1e6:10,.1f} MB")
    print("\nA local folder or a Hugging Face id (owner/name) can be named as well.")
    return 0


def _bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.glob("*.safetensors"))
