"""One JSON object per line on standard error: what happened, never what was asked or answered.

Called by the supervisor and the engine process, a few times in the life of an engine; a log of requests is
for the room that meets clients. A line that cannot be written is counted and dropped.
"""

import json
import sys
import time
from typing import TextIO


class EventLog:
    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._num_dropped = 0

    def write(self, event: str, **fields: str | float | list[str] | None) -> None:
        """Control characters, line separators and text direction marks in values are escaped."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **fields}, ensure_ascii=True)
        stream = sys.stderr if self._stream is None else self._stream
        try:
            stream.write(line + "\n")
            stream.flush()
        except (OSError, ValueError):  # the latter: the stream is closed
            self._num_dropped += 1

    def take_dropped(self) -> int:
        """How many lines were lost since last asked."""
        count, self._num_dropped = self._num_dropped, 0
        return count
