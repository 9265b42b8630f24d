"""The command line as tests call it: in this process, which is quick, or in one of its own (slow)."""

import io
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from penstock.cli.main import main

SOURCE = str(Path(__file__).parents[3] / "src")


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Command = Callable[..., Result]
NO_NATIVE = (
    "note: running on the reference backend: numpy reference, slow: this install has no native kernels"
)


def without_build_note(text: str) -> str:
    """Standard error less the line that every run has where the native build is missing."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith(NO_NATIVE))


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": SOURCE, "HF_HUB_OFFLINE": "1", **(more or {})}


def in_process_of_its_own(
    *arguments: str, stdin: bytes = b"", env: Mapping[str, str] | None = None
) -> Result:
    done = subprocess.run(
        [sys.executable, "-m", "penstock.cli.main", *arguments],
        input=stdin,
        capture_output=True,
        env=environment(env),
        timeout=120,
        check=False,
    )
    return Result(done.returncode, done.stdout.decode(), without_build_note(done.stderr.decode()))


@pytest.fixture
def here(monkeypatch, capsys, tmp_path) -> Command:
    """Runs a command in this process. What escapes `main` fails the test: users would see a traceback."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*arguments: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> Result:
        for name, value in (env or {}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8"))
        capsys.readouterr()
        try:
            code = main(arguments)
        except SystemExit as leaving:  # argparse
            code = int(leaving.code or 0)
        out, err = capsys.readouterr()
        return Result(code, out, without_build_note(err))

    return run


@pytest.fixture(params=["here", pytest.param("process", marks=pytest.mark.slow)])
def command(request, here) -> Command:
    """Each test twice: in this process, and as users run it."""
    return here if request.param == "here" else in_process_of_its_own
