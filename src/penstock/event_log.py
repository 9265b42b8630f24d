"""One JSON object per line on standard error: what happened, never what was asked or answered.

The one log of the server, of its engine's supervisor and of the engine process. Nobody who writes ever waits:
a reader that stalls, a full disk or a closed stream must not stop an answer. A thread of its own writes; its
queue is bounded; what does not fit is counted, dropped, and told as soon as a line gets through again.
"""

import json
import os
import queue
import threading
import time
from typing import TextIO

MAX_FIELD_CHARS = 500
MAX_WAITING = 10_000
Field = str | float | list[str] | None


class EventLog:
    """`write` from any thread. `close` to have written what can be. `target`: a stream, or a descriptor.

    A descriptor is written to past Python's buffers: their locks would be held by a write that stalls, and
    the process could not even end.
    """

    def __init__(self, target: TextIO | int = 2) -> None:
        self._target = target
        self._lines: queue.Queue[str | None] = queue.Queue(MAX_WAITING)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._num_dropped = 0
        self._num_told = 0  # of those, in a line

    @property
    def num_dropped(self) -> int:
        """Lines that could not be written so far."""
        return self._num_dropped

    def write(self, event: str, **fields: Field) -> None:
        """Control characters, line separators and text direction marks in values are escaped."""
        try:
            self._lines.put_nowait(_line(event, fields))
        except queue.Full:
            self._drop()
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="penstock-log", daemon=True)
                    self._thread.start()

    def close(self, timeout_s: float = 1.0) -> None:
        """Wait so long for what is left. Harmless a second time."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        try:
            self._lines.put_nowait(None)
        except queue.Full:
            return
        thread.join(timeout_s)

    def _drop(self) -> None:
        with self._lock:
            self._num_dropped += 1

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            missing = self._num_dropped - self._num_told
            try:
                if missing:
                    self._put(_line("log_lines_dropped", {"count": missing}))
                    self._num_told += missing
                self._put(line)
            except (OSError, ValueError):  # disk full, pipe gone; the latter: the stream is closed
                self._drop()

    def _put(self, line: str) -> None:
        if not isinstance(self._target, int):
            self._target.write(line)
            self._target.flush()
            return
        data = line.encode("ascii")  # a line that a pipe takes whole is not mixed with another process's
        while data:
            data = data[os.write(self._target, data) :]


def _line(event: str, fields: dict[str, Field]) -> str:
    line: dict[str, Field] = {"time": round(time.time(), 3), "event": event}
    for key, value in fields.items():
        line[key] = value[:MAX_FIELD_CHARS] if isinstance(value, str) else value
    return json.dumps(line, ensure_ascii=True) + "\n"
