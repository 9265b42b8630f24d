"""Who may wait, and how long: bounded by number and bytes, refused in constant time, before tokenizing.

The wait that a newcomer must expect is told from how quickly those before it left: Retry-After says it, and
who would wait longer than is allowed is refused at once instead of later.
"""

from collections.abc import Callable
from types import TracebackType

from penstock.engine.serving import Limits
from penstock.errors import OverloadedError

MEMORY_OF_DEPARTURES = 32
SHORTEST_RETRY_S = 1.0


class Ticket:
    """A place in the queue, for one call. Leaving gives it back, once; starting to run does so earlier."""

    __slots__ = ("_num_bytes", "_room")

    def __init__(self, room: "WaitingRoom", num_bytes: int) -> None:
        self._room: WaitingRoom | None = room
        self._num_bytes = num_bytes

    def resize(self, num_bytes: int) -> None:
        """What the call takes now that it is tokenized."""
        if self._room is not None:
            self._room.num_bytes += num_bytes - self._num_bytes
            self._num_bytes = num_bytes

    def leave(self, *, to_run: bool = False) -> None:
        if self._room is not None:
            self._room.give_back(self._num_bytes, to_run=to_run)
            self._room = None

    def __enter__(self) -> "Ticket":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()


class WaitingRoom:
    """`num_free` tells how many calls could begin at once; `clock` the time."""

    def __init__(self, limits: Limits, clock: Callable[[], float], num_free: Callable[[], int]) -> None:
        self._limits = limits
        self._clock = clock
        self._num_free = num_free
        self.num_waiting = 0
        self.num_bytes = 0
        self._interval_s = 0.0  # between two calls that left to run while others waited
        self._num_gaps = 0
        self._last_departure_s: float | None = None

    def enter(self, num_bytes: int) -> Ticket:
        """OverloadedError: no place, or a wait beyond the limit."""
        limits = self._limits
        wait_s = self.predicted_wait_s
        if self.num_waiting >= limits.queued_requests:
            raise OverloadedError(
                f"{self.num_waiting:,} requests wait already, which is the limit; ask again later.",
                retry_after_s=max(SHORTEST_RETRY_S, wait_s),
            )
        if self.num_bytes + num_bytes > limits.queued_bytes:
            raise OverloadedError(
                f"{self.num_bytes:,} bytes of requests wait already, this one has {num_bytes:,}, and the "
                f"limit is {limits.queued_bytes:,}; ask again later.",
                retry_after_s=max(SHORTEST_RETRY_S, wait_s),
            )
        if wait_s > limits.queue_wait_s:
            raise OverloadedError(
                f"this request would wait {wait_s:.0f} s and {limits.queue_wait_s:.0f} s is the limit; ask "
                "again later.",
                retry_after_s=max(SHORTEST_RETRY_S, wait_s - limits.queue_wait_s),
            )
        self.num_waiting += 1
        self.num_bytes += num_bytes
        return Ticket(self, num_bytes)

    @property
    def predicted_wait_s(self) -> float:
        """Of one who would come now."""
        return max(0, self.num_waiting - self._num_free()) * self._interval_s

    def give_back(self, num_bytes: int, *, to_run: bool) -> None:
        self.num_waiting -= 1
        self.num_bytes -= num_bytes
        if not to_run:
            return
        now_s = self._clock()
        if self._last_departure_s is not None:
            gap_s = now_s - self._last_departure_s
            self._num_gaps = min(self._num_gaps + 1, MEMORY_OF_DEPARTURES)
            self._interval_s += (gap_s - self._interval_s) / self._num_gaps
        self._last_departure_s = now_s if self.num_waiting else None
