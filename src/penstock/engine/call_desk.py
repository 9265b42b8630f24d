"""All calls under way, from the queue to their end: what steps, deaths, clocks and readers do to them.

Between AsyncEngine, which knows processes, and Dispatcher, which knows whose turn it is. One event loop.
"""

import asyncio
import time

from penstock.config import Plan
from penstock.engine.bookkeeper import Bookkeeper
from penstock.engine.dispatcher import Dispatcher, Send
from penstock.engine.journal import Entry, Journal
from penstock.engine.serving import Limits
from penstock.engine.waiting_room import Ticket, WaitingRoom
from penstock.engine.wire import Step
from penstock.errors import (
    DeadlineError,
    EngineRestartingError,
    OverloadedError,
    PenstockError,
    RequestPoisonedError,
    SlowReaderError,
)
from penstock.scheduler.policy import POLICIES


class CallDesk:
    def __init__(self, limits: Limits, books: Bookkeeper, *, resume: bool) -> None:
        self._limits = limits
        self._books = books
        self._resume = resume
        self._clock = time.monotonic
        self._loop = asyncio.get_running_loop()
        self._tickets: dict[str, Ticket] = {}
        self._send: Send | None = None
        self.journal = Journal()
        self.dispatcher = Dispatcher(self._started)
        self.room = WaitingRoom(limits, self._clock, lambda: self.dispatcher.num_free)

    # what readers do

    def begin(self, entry: Entry, ticket: Ticket | None) -> None:
        """Queue it, and start its clocks. Whoever has the ticket may leave it before."""
        limits, asked_s = self._limits, entry.call.timeout_s
        if ticket is not None:
            self._tickets[entry.key] = ticket
        self.journal.open(entry)
        self._books.began(entry)
        total_s = limits.total_s if asked_s is None else min(limits.total_s, asked_s)
        wait_s = min(limits.queue_wait_s, total_s)
        spent_s = self._clock() - entry.arrival_s
        entry.timers = [
            self._loop.call_later(max(0.0, total_s - spent_s), self._expire, entry, total_s),
            self._loop.call_later(max(0.0, wait_s - spent_s), self._expire_waiting, entry, wait_s),
        ]
        self.dispatcher.add(entry, self._clock())

    def end(self, entry: Entry) -> None:
        """The reader leaves. What has not ended is aborted; its blocks are free after the running step."""
        if self.journal.close(entry):
            self._leave_queue(entry, to_run=False)
            self.dispatcher.remove(entry, self._clock())
            self._books.ended(entry, self._clock())

    # what the engine does

    def engine_ready(self, send: Send, plan: Plan) -> None:
        self._send = send
        self.dispatcher.engine_ready(send, POLICIES[plan.policy](), plan.max_requests, self._clock())

    def engine_lost(self, *, of_itself: bool) -> None:
        """Condemn, or fail, or keep for the next engine."""
        self._send = None
        now_s = self._clock()
        given = self.dispatcher.given
        condemned = self.dispatcher.engine_lost(of_itself=of_itself)
        if condemned is not None:
            self._fail(
                condemned,
                RequestPoisonedError(
                    f"request {condemned.call.request_id} ended the engine process {condemned.num_strikes} "
                    "times and is not run again; please report it, with its parameters."
                ),
            )
        for entry in given:
            if entry.has_ended:
                continue
            if self._resume:
                self._books.metrics.replays.inc()
            else:
                self.dispatcher.remove(entry, now_s)
                self._fail(
                    entry,
                    EngineRestartingError(
                        "the engine process died and this server does not replay; send the request again.",
                        retry_after_s=self._limits.restart_backoff_s,
                    ),
                )

    def take_step(self, step: Step) -> None:
        """One step of the engine: keep it, then wake whoever reads, each once."""
        now_s = self._clock()
        books, dispatcher, find = self._books, self.dispatcher, self.journal.find
        observe_gap = books.metrics.gap.observe
        num_tokens = 0
        touched: dict[str, Entry] = {}
        for delta in step.deltas:
            found = find(delta.request_id)
            if found is None:
                continue  # its reader has left
            entry, index = found
            times = entry.answer.metrics
            had_token = times.first_token_s is not None
            gap_s = entry.take(index, delta, now_s)
            if gap_s is not None:
                observe_gap(gap_s)
            num_tokens += len(delta.tokens)
            if not had_token and times.first_token_s is not None:
                books.first_token(entry)
            touched[entry.key] = entry
        for entry in touched.values():
            dispatcher.has_got_on(entry, now_s)
            if entry.answer.finished:
                dispatcher.remove(entry, now_s)
            entry.wake(now_s)
            if entry.num_unread_bytes > self._limits.unsent_bytes and entry.unread_since_s is not None:
                self._fail_slow(entry)
        books.metrics.output_tokens.inc(num_tokens)
        books.metrics.step_tokens.observe(num_tokens)

    def refuse(self, request_id: str, error: PenstockError) -> None:
        """The engine will not run one request of a call: the call fails."""
        found = self.journal.find(request_id)
        if found is not None:
            self._fail(found[0], error)

    # what time does

    def sweep(self) -> None:
        """Once a second: readers that have not read for too long."""
        now_s = self._clock()
        slow = [
            entry
            for entry in self.journal
            if entry.unread_since_s is not None
            and now_s - entry.unread_since_s > self._limits.idle_write_s
            and entry.error is None
        ]
        for entry in slow:
            self._fail_slow(entry)

    def abort_youngest(self) -> bool:
        """For the memory guard. False: there is none left."""
        running = [entry for entry in self.dispatcher.given if not entry.has_ended]
        if not running:
            return False
        self._fail(
            max(running, key=lambda entry: entry.arrival_s),
            OverloadedError("the server runs out of memory and ended its youngest request; ask again later."),
        )
        return True

    def fail_all(self, make: PenstockError) -> None:
        for entry in list(self.journal):
            self._fail(entry, make)

    def _expire(self, entry: Entry, limit_s: float) -> None:
        self._fail(entry, DeadlineError(f"the request was not done within its {limit_s:g} s."))

    def _expire_waiting(self, entry: Entry, limit_s: float) -> None:
        if entry.key in self._tickets:
            self._fail(
                entry,
                DeadlineError(f"the request could not begin within {limit_s:g} s; ask again later."),
            )

    def _fail_slow(self, entry: Entry) -> None:
        self._fail(
            entry,
            SlowReaderError(
                f"request {entry.call.request_id}: the client left {entry.num_unread_bytes:,} bytes unread; "
                "the request was ended."
            ),
        )

    def _fail(self, entry: Entry, error: PenstockError) -> None:
        if entry.has_ended:
            return
        now_s = self._clock()
        self._leave_queue(entry, to_run=False)
        self.dispatcher.remove(entry, now_s)
        entry.fail(error, now_s)

    def _started(self, entry: Entry) -> None:
        self._leave_queue(entry, to_run=True)

    def _leave_queue(self, entry: Entry, *, to_run: bool) -> None:
        ticket = self._tickets.pop(entry.key, None)
        if ticket is not None:
            ticket.leave(to_run=to_run)
