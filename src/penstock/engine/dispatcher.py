"""Which calls the engine process has, and which go next; after a death, who is to blame.

The engine is given no more calls than it can run, and a few: the queue stays here, compact. After a death of
its own doing (not a kill from outside) all calls it had are suspects. They go back one at a time, each on
trial until it gets on; whoever alone can have caused two deaths, without getting on in between, is condemned.
So one bad request cannot take others along.
"""

from collections import deque
from collections.abc import Callable

from penstock.engine.journal import Entry
from penstock.engine.wire import Abort, Message
from penstock.scheduler.policy import SchedulingPolicy
from penstock.scheduler.waiting_line import WaitingLine

DEATHS_TO_CONDEMN = 2
AHEAD = 4  # calls that wait in the engine, so that a place that becomes free is taken in the same step

Send = Callable[[Message], None]


class Dispatcher:
    """`on_start` is told of each call when it first leaves the queue. Plain state; no clock and no task."""

    def __init__(self, on_start: Callable[[Entry], None]) -> None:
        self._on_start = on_start
        self._send: Send | None = None  # None: there is no engine that could take any
        self._max_requests = 0
        self._waiting: WaitingLine[Entry] = WaitingLine()
        self._given: dict[str, Entry] = {}  # what the engine has, by key
        self._num_given = 0  # its requests, n counted each
        self._returning: deque[Entry] = deque()  # the next engine's, and nobody doubts them
        self._suspects: deque[Entry] = deque()
        self._on_trial: Entry | None = None

    @property
    def num_free(self) -> int:
        """How many requests more the engine would take now."""
        return 0 if self._send is None else max(0, self._max_requests + AHEAD - self._num_given)

    @property
    def given(self) -> list[Entry]:
        """The calls that the engine has."""
        return list(self._given.values())

    def add(self, entry: Entry, now_s: float) -> None:
        self._waiting.add(entry, now_s)
        self.feed(now_s)

    def remove(self, entry: Entry, now_s: float) -> None:
        """It has ended, or nobody wants it any more: the engine is told if it may still run it."""
        self._waiting.discard(entry.key)
        for line in (self._returning, self._suspects):
            if entry in line:
                line.remove(entry)
        if self._given.pop(entry.key, None) is not None:
            self._num_given -= len(entry.is_open)
            left = tuple(entry.request_ids())
            if left and self._send is not None:
                self._send(Abort(left))
        if self._on_trial is entry:
            self._on_trial = None
        self.feed(now_s)

    def has_got_on(self, entry: Entry, now_s: float) -> None:
        """It has a new token: it is no suspect any more."""
        entry.num_strikes = 0
        if self._on_trial is entry:
            self._on_trial = None
            self.feed(now_s)

    def engine_ready(self, send: Send, policy: SchedulingPolicy, max_requests: int, now_s: float) -> None:
        self._send, self._max_requests = send, max_requests
        self._waiting.order_by(policy, now_s)
        self.feed(now_s)

    def engine_lost(self, *, of_itself: bool) -> Entry | None:
        """The engine is dead. Gives the call that is condemned for it, which is no longer known here."""
        back = [entry for entry in self._given.values() if not entry.has_ended]
        on_trial, self._on_trial, self._send = self._on_trial, None, None
        self._given.clear()
        self._num_given = 0
        condemned = None
        if of_itself:
            blamed = back[0] if len(back) == 1 else on_trial
            if blamed is not None:
                blamed.num_strikes += 1
                if blamed.num_strikes >= DEATHS_TO_CONDEMN:
                    condemned = blamed
                    back.remove(blamed)
            self._suspects.extendleft(reversed(back))
            return condemned
        if on_trial is not None and on_trial in back:
            back.remove(on_trial)
            self._suspects.appendleft(on_trial)
        self._returning.extendleft(reversed(back))
        return None

    def feed(self, now_s: float) -> None:
        """Give the engine what it can take."""
        if self._send is None:
            return
        while self._returning:
            self._give(self._returning.popleft())
        if self._suspects or self._on_trial is not None:
            if self._on_trial is None:
                self._on_trial = self._suspects.popleft()
                self._give(self._on_trial)
            return
        while self._waiting and self._num_given < self._max_requests + AHEAD:
            entry = self._waiting.pop(now_s)
            self._on_start(entry)
            self._give(entry)

    def _give(self, entry: Entry) -> None:
        assert self._send is not None, "only called where there is an engine"
        self._given[entry.key] = entry
        self._num_given += len(entry.is_open)
        for submit in entry.submits():
            self._send(submit)
