"""The engine process: `python -m penstock.engine.process SOCKET LINK_FD PARENT_PID`, run by the supervisor.

Loads one model, then: read what has come, run a step, send what it did as one frame. Holds no text of its
own and writes nothing to disk. Leaves when it is told to, or when the front end is gone.
"""

import ctypes
import hashlib
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from penstock.config import EngineConfig, Plan
from penstock.engine.admission import default_params, eos_ids_of
from penstock.engine.assemble import make_core
from penstock.engine.build import Loaded, load_model
from penstock.engine.channel import Channel
from penstock.engine.core import EngineCore
from penstock.engine.liveness import Pulse, Vitals
from penstock.engine.serving import ModelFacts
from penstock.engine.steady_memory import freeze_loaded
from penstock.engine.step_timer import StepTimer
from penstock.engine.wire import (
    VERSION,
    Abort,
    Hello,
    Message,
    Ready,
    Start,
    Step,
    Stop,
    Submit,
    fault_of,
    request_of,
)
from penstock.errors import EngineError, OutOfMemoryError, PenstockError
from penstock.event_log import EventLog
from penstock.model.config_reader import read_json
from penstock.model.matryoshka import read_sizes

PR_SET_PDEATHSIG = 1
LAST_WORDS_S = 2.0
Loader = Callable[[str, EngineConfig], Loaded]
Maker = Callable[[Loaded], EngineCore]


def main(argv: Sequence[str], load: Loader = load_model, make: Maker = make_core) -> int:
    """The exit code. `load` and `make` are handed in by tests that want an engine with faults."""
    path, link_fd, parent = Path(argv[0]), int(argv[1]), int(argv[2])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the front end decides when to leave
    channel = Channel.connect(path)

    def leave() -> None:
        channel.hide()  # the front end may have died before it could
        os._exit(0)

    if os.getppid() != parent:  # it died before this began
        leave()
    vitals = Vitals()
    Pulse(socket.socket(fileno=link_fd), vitals, leave).start()
    try:
        _Engine(channel, vitals, load, make).run()
    except PenstockError as error:
        _say("engine_stopped", error=type(error).__name__, reason=str(error))
        return error.exit_code
    except Exception as error:  # a crash report: where, never what was asked
        places = [f"{f.filename}:{f.lineno} {f.name}" for f in traceback.extract_tb(error.__traceback__)]
        _say("engine_crashed", error=type(error).__name__, at=places)
        return EngineError.exit_code
    return 0


def _say(event: str, **fields: str | list[str]) -> None:
    """A last word, if standard error takes it in time."""
    log = EventLog()
    log.write(event, **fields)
    log.close()


class _Engine:
    def __init__(self, channel: Channel, vitals: Vitals, load: Loader, make: Maker) -> None:
        self._channel = channel
        self._vitals = vitals
        self._load = load
        self._make = make
        self._is_stopping = False
        self._num_senseless = 0  # messages that no front end sends

    def run(self) -> None:
        channel, vitals = self._channel, self._vitals
        channel.send(Hello(VERSION, os.getpid()))
        start = self._wait_for_start()
        if start is None:
            return
        channel.hide()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # should even the pulse be stuck
        try:
            loaded = self._loaded(start)
        except PenstockError as error:
            channel.send(fault_of("", error))
            channel.close(linger_s=LAST_WORDS_S)
            raise
        timer = StepTimer(vitals, loaded.executor, weight_bytes=loaded.plan.weight_bytes)
        core = self._make(replace(loaded, executor=timer))
        channel.send(ready_of(start.name, loaded, core))
        freeze_loaded()
        while not self._is_stopping:
            vitals.turn_began_s = time.monotonic()
            while (message := channel.receive()) is not None:
                self._take(core, message)
            self._turn(core)

    def _loaded(self, start: Start) -> Loaded:
        """A load for which there was no memory is refused once; trying again would end alike."""
        try:
            return self._load(start.folder, start.config)
        except MemoryError:
            pass  # first let go of all that the load held
        raise OutOfMemoryError(
            f"memory ran out while {start.name} was loaded; free some, or ask for smaller weights or a "
            "shorter context."
        )

    def _turn(self, core: EngineCore) -> None:
        """One step and its frame, or wait for a message."""
        vitals, channel = self._vitals, self._channel
        if not core.has_requests:
            self._measure(core)
            vitals.turn_began_s = None
            if not self._is_stopping:
                channel.wait()
            return
        deltas = core.step()
        self._measure(core)
        vitals.turn_began_s = None
        if deltas:
            channel.send(Step(deltas))

    def _take(self, core: EngineCore, message: Message) -> None:
        match message:
            case Submit():
                try:
                    core.add_request(request_of(message))
                except PenstockError as error:
                    self._channel.send(fault_of(message.request_id, error))
                except ValueError:  # tokens that are no whole number of integers
                    self._num_senseless += 1
            case Abort(request_ids):
                for request_id in request_ids:
                    core.abort(request_id)
            case Stop():
                self._is_stopping = True
            case _:
                self._num_senseless += 1

    def _wait_for_start(self) -> Start | None:
        while True:
            self._channel.wait()
            message = self._channel.receive()
            if isinstance(message, Start):
                if message.version != VERSION:
                    raise EngineError(
                        f"the front end speaks version {message.version} of the wire, this engine {VERSION}; "
                        "install one penstock alone and restart."
                    )
                return message
            if isinstance(message, Stop):
                return None

    def _measure(self, core: EngineCore) -> None:
        vitals, scheduler = self._vitals, core.scheduler
        vitals.num_malformed = self._channel.num_malformed + self._num_senseless
        vitals.num_running = scheduler.num_running
        vitals.num_waiting = scheduler.num_waiting
        vitals.num_preemptions = scheduler.num_preemptions
        vitals.kv_usage = scheduler.kv_usage


def ready_of(name: str, loaded: Loaded, core: EngineCore) -> Ready:
    plan = loaded.plan
    shown = {key: str(value) for key, value in msgspec.to_builtins(plan).items() if key != "reasons"}
    facts = ModelFacts(
        name=name,
        max_context=plan.max_context,
        vocab_size=loaded.spec.vocab_size,
        fingerprint=loaded.fingerprint,
        exactness="exact" if plan.is_faithful else f"lossy:{plan.weight_format}",
        config_hash=config_hash(plan),
        kv_bytes_per_token=plan.kv_bytes // (max(plan.num_kv_blocks) * plan.block_size),
        plan=shown,
        defaults=default_params(loaded.defaults),
        embedding_size=loaded.spec.hidden_size,
        embedding_cuts=read_sizes(read_json(loaded.folder / "config.json"), loaded.spec.hidden_size),
        pooling=loaded.pooling.pooling,
        is_normalized=loaded.pooling.is_normalized,
        has_head=loaded.spec.has_head,
    )
    eos_ids = tuple(sorted(eos_ids_of(loaded.defaults, loaded.tokenizer)))
    return Ready(facts, plan, eos_ids, core.scheduler.max_request_tokens(plan.max_context), loaded.notes)


def config_hash(plan: Plan) -> str:
    """Of everything that was decided, but for the seed of requests that bring none."""
    decided = {
        key: value for key, value in msgspec.to_builtins(plan).items() if key not in ("reasons", "seed")
    }
    return hashlib.blake2b(msgspec.json.encode(decided), digest_size=8).hexdigest()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
