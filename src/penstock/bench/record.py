"""What every stored row says of its moment: date, commit, machine. Used by the bench verbs."""

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path

import penstock
from penstock.backends.cpu.probe import cpu_name

Row = dict[str, object]


def stamp(isa: str, threads: int) -> Row:
    """Of the row that is written now."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "isa": isa,
        "threads": threads,
        "python": platform.python_version(),
    }


def append(path: Path, row: Mapping[str, object]) -> None:
    """One line at the end of the file, there when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def read(path: Path) -> list[Row]:
    """The rows of a file; a line that was cut off by an interruption is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def _commit() -> str:
    """Of the checkout that this package runs from, with + if it was changed; "" if it is installed."""
    folder = Path(penstock.__file__).parent
    try:
        head = _git(folder, "rev-parse", "--short", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", str(folder))
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("+" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
