"""An engine process that fails on purpose: `python -m tests.fakes.faulty_engine FAULTS SOCKET FD PARENT`.

The product has no such switch: the supervisor is handed this module's command line by the test that wants it.
FAULTS is JSON, see Faults. The model is real.
"""

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from penstock.engine.assemble import make_core
from penstock.engine.build import load_model
from penstock.engine.channel import Channel
from penstock.engine.process import main
from penstock.engine.wire import Hello
from penstock.errors import ModelLoadError


class Faults(msgspec.Struct, forbid_unknown_fields=True):
    """What goes wrong, and how: kill, segv, abort, raise, memory, exit, hang (asleep), spin (has the GIL)."""

    how: str = "kill"
    on_token: int | None = None  # when this id is computed
    at_step: int | None = None
    at_load: bool = False
    once: str | None = None  # a file: only the first engine that gets there fails
    step_s: float = 0.0  # every step takes so much longer
    is_silent: bool = False  # takes every request and never steps
    is_mute: bool = False  # its greeting never arrives
    forgets: int = 0  # so many requests never arrive
    load_error: bool = False


def command(**faults) -> tuple[str, ...]:
    return (sys.executable, "-m", "tests.fakes.faulty_engine", msgspec.json.encode(Faults(**faults)).decode())


def is_first(faults: Faults) -> bool:
    """Whether this engine is to fail: with `once`, no other did."""
    if faults.once is not None:
        try:
            Path(faults.once).touch(exist_ok=False)
        except FileExistsError:
            return False
    return True


def fail(faults: Faults) -> None:
    if not is_first(faults):
        return
    match faults.how:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "abort":
            os.abort()
        case "raise":
            raise RuntimeError("on purpose")
        case "memory":
            raise MemoryError
        case "exit":
            os._exit(0)
        case "hang":
            time.sleep(3600)


class FaultyExecutor:
    def __init__(self, executor, faults: Faults) -> None:
        self._executor = executor
        self._faults = faults
        self._num_steps = 0

    def forward(self, step):
        self._num_steps += 1
        if self._faults.step_s:
            time.sleep(self._faults.step_s)
        token = self._faults.on_token
        if (token is not None and np.any(step.tokens == token)) or self._num_steps == self._faults.at_step:
            fail(self._faults)
        return self._executor.forward(step)

    def describe(self):
        return self._executor.describe()


def run() -> int:
    faults = msgspec.json.decode(sys.argv[1], type=Faults)

    def load(model, config):
        if faults.at_load:
            fail(faults)
        if faults.load_error:
            raise ModelLoadError("truncated", "on purpose")
        loaded = load_model(model, config)
        return replace(loaded, executor=FaultyExecutor(loaded.executor, faults))

    def make(loaded):
        core = make_core(loaded)
        if faults.is_silent:
            core.add_request = lambda request: None
        if faults.forgets and is_first(faults):
            add, left = core.add_request, iter(range(faults.forgets))
            core.add_request = lambda request: next(left, None) is None and add(request)
        return core

    if faults.is_mute and is_first(faults):
        send = Channel.send
        Channel.send = lambda self, message: isinstance(message, Hello) or send(self, message)
    return main(sys.argv[2:], load, make)


if __name__ == "__main__":
    sys.exit(run())
