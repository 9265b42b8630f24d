"""Log lines as JSON, one per event, ASCII only; never a prompt, an answer or a key. Called by the whole room.

A reader that stops, or a full disk, must not stop an answer: a thread writes, the queue is bounded, and what
does not fit is counted and dropped.
"""

import json
import queue
import sys
import threading
import time
from typing import TextIO

MAX_FIELD_CHARS = 200
MAX_WAITING = 10_000


class JsonLog:
    """`event(name, field=value ...)`. Close to have everything written that could be."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._lines: queue.Queue[str | None] = queue.Queue(MAX_WAITING)
        self.num_dropped = 0
        self._thread = threading.Thread(target=self._write, name="penstock-log", daemon=True)
        self._thread.start()

    def event(self, name: str, **fields: str | float | None) -> None:
        """Never waits, never raises."""
        line: dict[str, str | float | None] = {"time": round(time.time(), 3), "event": name}
        for key, value in fields.items():
            line[key] = value[:MAX_FIELD_CHARS] if isinstance(value, str) else value
        try:
            # ensure_ascii writes CR, LF, ESC, U+2028 and bidi marks as escapes: one event stays one line
            self._lines.put_nowait(json.dumps(line, ensure_ascii=True))
        except queue.Full:
            self.num_dropped += 1

    def close(self, timeout_s: float = 1.0) -> None:
        try:
            self._lines.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(timeout_s)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._stream.write(line + "\n")
                if self._lines.empty():
                    self._stream.flush()
            except (OSError, ValueError):  # disk full, pipe gone, stream closed
                self.num_dropped += 1
