"""Is the other process alive, and does it get on? A pair of sockets that says so from both ends.

The engine's thread sends a Beat each second and never waits for the native call; if its end of the pair
closes, the front end has died and the engine leaves at once. The front end's Watch judges the beats.
"""

import os
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import msgspec

from penstock.engine.serving import Limits

BEAT_S = 1.0
LOADING_PATIENCE = 12  # times the heartbeat limit: reading weights may hold the interpreter for a while
LOADING_CPU_S = 0.05  # of its processor: less than that and the heart alone beats
MAX_TICK_S = 2.0  # time that passes for this process alone counts no more than this: it was frozen itself


class Beat(msgspec.Struct, frozen=True, array_like=True):
    """What the engine says of itself. `turn_began_s`: when the turn of the loop that runs now began."""

    sent_s: float
    turn_began_s: float | None
    predicted_s: float
    num_steps: int
    num_running: int
    num_waiting: int
    num_preemptions: int
    kv_usage: float
    rss_bytes: int
    num_malformed: int
    cpu_s: float


_decoder = msgspec.msgpack.Decoder(Beat)


def decode_beat(packet: bytes) -> Beat | None:
    try:
        return _decoder.decode(packet)
    except (msgspec.MsgspecError, ValueError):
        return None


@dataclass(slots=True)
class Vitals:
    """Written by the engine's loop, read by its heartbeat. Plain attributes: each is written whole."""

    turn_began_s: float | None = None
    predicted_s: float = 0.0
    num_steps: int = 0
    num_running: int = 0
    num_waiting: int = 0
    num_preemptions: int = 0
    kv_usage: float = 0.0
    num_malformed: int = 0

    def beat(self, now_s: float) -> Beat:
        return Beat(
            sent_s=now_s,
            turn_began_s=self.turn_began_s,
            predicted_s=self.predicted_s,
            num_steps=self.num_steps,
            num_running=self.num_running,
            num_waiting=self.num_waiting,
            num_preemptions=self.num_preemptions,
            kv_usage=self.kv_usage,
            rss_bytes=rss_bytes(),
            num_malformed=self.num_malformed,
            cpu_s=time.process_time(),
        )


class Pulse(threading.Thread):
    """The engine's side: beats until the front end is gone, then calls `on_orphaned`, to never return."""

    def __init__(self, link: socket.socket, vitals: Vitals, on_orphaned: Callable[[], None]) -> None:
        super().__init__(name="penstock-pulse", daemon=True)
        self._link = link
        self._vitals = vitals
        self._on_orphaned = on_orphaned

    def run(self) -> None:
        encoder = msgspec.msgpack.Encoder()
        while True:
            try:
                self._link.send(encoder.encode(self._vitals.beat(time.monotonic())), socket.MSG_DONTWAIT)
            except BlockingIOError:
                pass  # the front end is slow to read: it has enough of them
            except OSError:
                break
            readable, _, _ = select.select([self._link], [], [], BEAT_S)
            if readable and not self._link.recv(1):
                break
        self._on_orphaned()


class Stage(Enum):
    CONNECTING = "connecting"  # started, and no word from it yet
    LOADING = "loading"
    READY = "ready"


class Watch:
    """The front end's judgement. `tick` is called about each second; time is counted by its calls, so that a
    front end that was itself frozen (a paused machine) does not take that for the engine's silence.

    A heart that beats proves little: an engine may wait for a frame that was lost. So each stage has its own
    sign of life besides: a first word, work for the processor, steps for the calls that it was given.
    """

    def __init__(self, limits: Limits, now_s: float) -> None:
        self._limits = limits
        self._last_tick_s = now_s
        self._turn: tuple[int, float] | None = None
        self._turn_age_s = 0.0
        self._stage = Stage.CONNECTING
        self._sign: float = 0.0  # what the stage's sign of life was when it last changed
        self._sign_age_s = 0.0
        self.beat: Beat | None = None
        self.age_s = 0.0  # of the last beat, in ticks

    @property
    def stage(self) -> Stage:
        return self._stage

    def enter(self, stage: Stage) -> None:
        self._stage, self._sign, self._sign_age_s = stage, 0.0, 0.0

    def take(self, beat: Beat) -> None:
        self.beat = beat
        self.age_s = 0.0
        turn = None if beat.turn_began_s is None else (beat.num_steps, beat.turn_began_s)
        if turn != self._turn:
            self._turn, self._turn_age_s = turn, 0.0

    def tick(self, now_s: float, num_given: int = 0) -> str | None:
        """Why the engine must be taken for hung, or None. `num_given`: calls that it should be running."""
        passed_s = min(MAX_TICK_S, max(0.0, now_s - self._last_tick_s))
        self._last_tick_s = now_s
        self.age_s += passed_s
        self._sign_age_s += passed_s
        if self._turn is not None:
            self._turn_age_s += passed_s
        hang_s = self._limits.hang_s
        limit_s = max(hang_s, self._limits.heartbeat_s)
        patience_s = limit_s if self._stage is Stage.READY else limit_s * LOADING_PATIENCE
        if self.age_s > patience_s:
            return f"no heartbeat for {self.age_s:.0f} s"
        beat = self.beat
        if beat is None:
            self._sign_age_s = 0.0
            return None
        match self._stage:
            case Stage.CONNECTING if self._sign_age_s > limit_s:
                return f"it runs and has said nothing for {self._sign_age_s:.0f} s"
            case Stage.LOADING:
                if abs(beat.cpu_s - self._sign) > LOADING_CPU_S:
                    self._sign, self._sign_age_s = beat.cpu_s, 0.0
                if self._sign_age_s > patience_s:
                    return f"it is loading and has done nothing for {self._sign_age_s:.0f} s"
            case Stage.READY:
                if self._turn_age_s > max(hang_s, 5 * beat.predicted_s):
                    took_s = f"{self._turn_age_s:.0f} s"
                    return f"no step finished for {took_s}, {beat.predicted_s:.1f} s were predicted"
                has_work = self._turn is not None or beat.num_running + beat.num_waiting > 0
                if has_work or not num_given or beat.num_steps != self._sign:
                    self._sign, self._sign_age_s = beat.num_steps, 0.0
                if self._sign_age_s > limit_s:
                    return f"it has had {num_given} calls for {self._sign_age_s:.0f} s and runs none"
            case _:
                pass
        return None

    @property
    def is_fresh(self) -> bool:
        return self.beat is not None and self.age_s < self._limits.heartbeat_s


def rss_bytes() -> int:
    """Resident memory of this process; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 once a second, and nothing else
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
