"""Keeps one engine process alive: starts it, watches it, ends it when it hangs, starts the next one.

Runs in the front end's event loop. Knows processes and channels; what requests are is for AsyncEngine, which
is told of each message, of readiness and of each loss.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from penstock.config import EngineConfig
from penstock.engine.channel import Channel
from penstock.engine.liveness import Stage, Watch, decode_beat
from penstock.engine.serving import Limits
from penstock.engine.wire import VERSION, Fault, Hello, Message, Ready, Start, Stop, error_of
from penstock.errors import EngineError, PenstockError
from penstock.event_log import EventLog

COMMAND = (sys.executable, "-m", "penstock.engine.process")
LAST_BREATH_S = 5.0  # between closing its end and being gone
STOP_S = 3.0  # between asking an engine to leave and making it
BEAT_BYTES = 4096


def count_oom_kills() -> int | None:
    """How many processes the kernel has ended for want of memory; None where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


class Restarts:
    """When to try again. Deaths are counted in a window; the pause doubles until an engine has done work."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._deaths: deque[float] = deque()
        self._num_in_vain = 0

    def worked(self) -> None:
        self._num_in_vain = 0

    def died(self, now_s: float) -> float | None:
        """Seconds to wait, or None: give up."""
        limits = self._limits
        self._deaths.append(now_s)
        while self._deaths[0] <= now_s - limits.restart_window_s:
            self._deaths.popleft()
        if len(self._deaths) >= limits.restart_failures:
            return None
        pause_s = limits.restart_backoff_s * 2.0**self._num_in_vain
        self._num_in_vain += 1
        return min(limits.restart_backoff_max_s, pause_s)


class Owner(Protocol):
    """Whom the supervisor tells. None of these may block."""

    @property
    def num_given(self) -> int:
        """Calls that the engine has and that have not ended."""
        ...

    def on_ready(self, ready: Ready, engine: "RunningEngine") -> None: ...
    def on_message(self, message: Message) -> None: ...
    def on_lost(self, *, of_itself: bool) -> None: ...
    def on_gave_up(self, error: PenstockError) -> None: ...


class RunningEngine:
    """One incarnation: its process, its channel, its pulse."""

    def __init__(self, command: Sequence[str], limits: Limits, loop: asyncio.AbstractEventLoop) -> None:
        self.channel = Channel.bind()
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._link.setblocking(False)
        try:
            self.process = subprocess.Popen(
                [*command, str(self.channel.path), str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # a Ctrl-C in the terminal is for the front end
            )
        except OSError:
            self.channel.hide()
            self.channel.close()
            self._link.close()
            raise
        finally:
            theirs.close()
        self.watch = Watch(limits, time.monotonic())
        self.ended: asyncio.Future[str] = loop.create_future()
        self.fault: PenstockError | None = None
        self._loop = loop
        self._has_left = False  # closed its end of the pair: it is dead, or about to be
        self._num_oom_kills = count_oom_kills()

    def listen(self, on_readable: Callable[[], None]) -> None:
        self._on_readable = on_readable
        self._loop.add_reader(self.channel.fd, on_readable)
        self._loop.add_reader(self._link.fileno(), self._read_pulse)

    def send(self, message: Message) -> None:
        """Sending may swallow the signal that something has arrived: so look, soon.

        What a dead engine did not get is in the journal, and the next one is sent it.
        """
        self.channel.send(message)
        self._loop.call_soon(self._on_readable)

    def end(self, reason: str) -> None:
        if not self.ended.done():
            self.ended.set_result(reason)

    def _read_pulse(self) -> None:
        while True:
            try:
                packet = self._link.recv(BEAT_BYTES)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self._loop.remove_reader(self._link.fileno())
                self._has_left = True
                self.end("it has ended")
                return
            beat = decode_beat(packet)
            if beat is None:
                self.channel.num_malformed += 1
            else:
                self.watch.take(beat)

    def died_of_itself(self) -> bool:
        """Whether what it computed may have ended it: everything but a kill from outside.

        The kernel kills, too, where memory is short, and counts it.
        """
        code = self.process.returncode
        if not self._has_left or code != -signal.SIGKILL:
            return True  # it hung, or it failed
        num_oom_kills = count_oom_kills()
        return num_oom_kills is None or num_oom_kills != self._num_oom_kills

    def _reap(self) -> int:
        """Its exit code. One that has closed its end is on its way out: killing it now would hide why."""
        if not self._has_left:
            self.process.kill()
        try:
            return self.process.wait(LAST_BREATH_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    async def retire(self) -> str:
        """End what is left of it. Gives how it ended."""
        self._loop.remove_reader(self.channel.fd)
        self._loop.remove_reader(self._link.fileno())
        code = await self._loop.run_in_executor(None, self._reap)
        self._link.close()
        self.channel.hide()
        self.channel.close()
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"exit code {code}"


class Supervisor:
    """`run` is the task; it ends after `stop`, or when it has given up."""

    def __init__(
        self,
        owner: Owner,
        *,
        name: str,
        folder: Path,
        config: EngineConfig,
        limits: Limits,
        log: EventLog,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self._owner = owner
        self._name = name
        self._folder = folder
        self._config = config
        self._limits = limits
        self._log = log
        self._command = command
        self._restarts = Restarts(limits)
        self._is_stopping = False
        self._was_ready = False
        self._wake = asyncio.Event()
        self.engine: RunningEngine | None = None
        self.num_restarts = 0
        self._num_malformed = 0

    def pin(self, config: EngineConfig) -> None:
        """What the next engine is started with: nothing that was decided may be decided anew."""
        self._config = config

    def count_malformed(self) -> int:
        """Frames of all engines so far that were dropped."""
        return self._num_malformed + (0 if self.engine is None else self.engine.channel.num_malformed)

    def worked(self) -> None:
        self._restarts.worked()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._is_stopping:
            engine = self.engine = RunningEngine(self._command, self._limits, loop)
            engine.listen(self._read)
            watcher = loop.create_task(self._watch(engine))
            reason = await engine.ended
            watcher.cancel()
            self._read()  # what it said before it ended
            how = await engine.retire()
            self._num_malformed += engine.channel.num_malformed
            self.engine = None
            if self._is_stopping:
                return
            self._log.write("engine_lost", reason=reason, how=how, pid=engine.process.pid)
            if engine.fault is not None and not self._was_ready:
                self._owner.on_gave_up(engine.fault)
                return
            pause_s = self._restarts.died(time.monotonic())
            self._owner.on_lost(of_itself=engine.died_of_itself())
            if pause_s is None:
                limits = self._limits
                self._owner.on_gave_up(
                    EngineError(
                        f"the engine process died {limits.restart_failures} times within "
                        f"{limits.restart_window_s:.0f} s ({how}); this server gives up. Its log says more."
                    )
                )
                return
            try:
                await asyncio.wait_for(self._wake.wait(), pause_s)
            except TimeoutError:
                self.num_restarts += 1

    async def stop(self) -> None:
        """Ask the engine to leave, then make it. `run` returns."""
        self._is_stopping = True
        self._wake.set()
        engine = self.engine
        if engine is None:
            return
        if not engine.channel.send(Stop()):
            engine.end("it was stopped before it had come")
        try:
            await asyncio.wait_for(asyncio.shield(engine.ended), STOP_S)
        except TimeoutError:
            engine.end("it was stopped")

    async def _watch(self, engine: RunningEngine) -> None:
        """Once a second: does it get on?"""
        while True:
            await asyncio.sleep(1.0)
            reason = engine.watch.tick(time.monotonic(), self._owner.num_given)
            if reason is not None:
                engine.end(reason)

    def _read(self) -> None:
        """All that has arrived."""
        engine = self.engine
        if engine is None:
            return
        while (message := engine.channel.receive()) is not None:
            self._take(engine, message)

    def _take(self, engine: RunningEngine, message: Message) -> None:
        match message:
            case Hello(version, _):
                if version != VERSION:
                    engine.fault = EngineError(
                        f"the engine speaks version {version} of the wire, this front end {VERSION}; "
                        "install one penstock alone and restart."
                    )
                    engine.end("it speaks another version")
                    return
                engine.channel.hide()
                engine.watch.enter(Stage.LOADING)
                engine.send(Start(VERSION, self._name, str(self._folder), self._config))
            case Ready():
                engine.watch.enter(Stage.READY)
                self._was_ready = True
                self._owner.on_ready(message, engine)
            case Fault(request_id="") as fault:
                engine.fault = error_of(fault)
            case Start() | Stop():
                engine.channel.num_malformed += 1
            case _:
                self._owner.on_message(message)
