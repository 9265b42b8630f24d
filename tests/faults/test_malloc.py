"""The n-th allocation fails in each parser of what others wrote, in loading and in a step: how each ends.

A library beside the C library's own fails one call of malloc. CPython and our native code raise MemoryError;
Rust ends the process, and so do places in libraries of C that look at nothing; so it matters in which process
each runs and what is seen of it:

| parser | process | what is seen |
|---|---|---|
| safetensors, GGUF, packing, native program | engine | at start one line, exit code 71; in a step a restart |
| llguidance | worker's child, then engine | 400 `grammar_limit`; a restart, and the streams go on |
| tokenizers, msgspec (bodies, frames) | front end, engine | where it is caught, 503 `engine_overloaded`; |
| | | else that process ends; systemd (deploy/) starts a front end anew |

In none is there a wrong result, and whoever is alive afterwards does the same work as before.
"""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.fakes.faulty_engine import command
from tests.fakes.served import PATIENT, ask, served
from tests.faults.malloc_victims import VICTIMS

from penstock.api.problem import problem_of
from penstock.cli.main import main
from penstock.engine.serving import Limits
from penstock.errors import OutOfMemoryError

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
CAUGHT = ("right", "MemoryError", "OutOfMemoryError", "said so")
RUST = ("aborted by Rust",)
# C that looks at nothing: the patterns of tokenizers (Onigmo), msgspec's buffers, numpy, nanobind's arrays.
SEGV, NUMPY, NANOBIND = "ended with -11", "SystemError", "ended with -6: terminate called after throwing"
ENDINGS = {
    "safetensors": CAUGHT,
    "gguf": CAUGHT,
    "tokenizer_file": (*CAUGHT, *RUST, "ModelLoadError: "),
    "tokenizing": (*CAUGHT, *RUST, SEGV),
    "detokenizing": (*CAUGHT, *RUST),
    "frame": (*CAUGHT, SEGV),
    "grammar": (*CAUGHT, *RUST),
    "grammar_in_the_worker": CAUGHT,
    "engine_init": (*CAUGHT, *RUST, SEGV, NUMPY, NANOBIND),
    "step": (*CAUGHT, *RUST, SEGV, NUMPY, NANOBIND),
}
PLACES = {
    "engine_init": (20, 60),
    "tokenizer_file": (20, 40),
}  # each of their children takes a third of a second


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    if COMPILER is None:
        pytest.skip("NOT TESTED: there is no C compiler here to build the failing malloc with")
    if not os.confstr("CS_GNU_LIBC_VERSION"):
        pytest.skip("NOT TESTED: the failing malloc stands before glibc's")
    made = tmp_path_factory.mktemp("shim") / "failing_malloc.so"
    source = Path(__file__).with_name("failing_malloc.c")
    subprocess.run(
        [COMPILER, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(made), str(source)], check=True
    )
    return made


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", VICTIMS)
def test_every_allocation_that_fails_ends_in_a_way_that_is_known(shim, name):
    dense, sparse = PLACES.get(name, (60, 60))
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.malloc_victims", name, str(dense), str(sparse)],
        cwd=ROOT,
        env={**os.environ, "LD_PRELOAD": str(shim), "TOKENIZERS_PARALLELISM": "false", "RUST_BACKTRACE": "0"},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    print(name, told)

    unknown = [how for how in told["endings"] if not how.startswith(ENDINGS[name]) or ", then " in how]
    assert unknown == []
    assert set(told["endings"]) != {"right"}, "nothing failed"


def test_a_load_without_memory_ends_at_once_with_one_line():
    """It is not tried again: what is too large stays so."""

    async def run():
        async with served(Limits(), command=command(how="memory", at_load=True)):
            pass

    began_s = time.monotonic()
    with pytest.raises(OutOfMemoryError, match="memory ran out while penstock-tiny was loaded; free some"):
        asyncio.run(run())
    assert time.monotonic() - began_s < 20
    assert OutOfMemoryError.exit_code == 71


@pytest.mark.slow
def test_a_step_without_memory_is_a_restart_and_the_answer_goes_on(tmp_path):
    faulty = command(how="memory", at_step=5, once=str(tmp_path / "ran out"))

    async def run(**options):
        async with served(PATIENT, **options) as engine:
            answer = await ask(engine, "def f(", max_tokens=20)
            return answer, engine._supervisor.num_restarts

    (whole, _), (answer, restarts) = asyncio.run(run()), asyncio.run(run(command=faulty))
    assert (answer.ids, answer.text) == (whole.ids, whole.text)
    assert restarts == 1


def test_on_the_command_line_it_is_one_line(monkeypatch, capsys):
    def run_out(options):
        raise MemoryError

    monkeypatch.setattr("penstock.cli.models.run", run_out)

    assert main(["models"]) == 71
    told = capsys.readouterr()
    assert told.out == ""
    assert re.fullmatch(r"error: memory ran out; .*\n", told.err)


def test_a_client_is_asked_to_come_again():
    problem = problem_of(MemoryError())

    assert (problem.status, problem.body.code) == (503, "engine_overloaded")
    assert problem.headers["retry-after"] == "5"
