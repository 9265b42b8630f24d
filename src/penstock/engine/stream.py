"""One call's answer as it comes: what `AsyncEngine.stream` gives. Entering queues it, leaving ends it."""

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Protocol

from penstock.engine.journal import Entry
from penstock.engine.waiting_room import Ticket
from penstock.request import RequestOutput


class Host(Protocol):
    def begin(self, entry: Entry, ticket: Ticket | None) -> None: ...
    def end(self, entry: Entry) -> None: ...


class Stream:
    """An asynchronous iterator of news, merged: a reader that comes late gets all since in one piece."""

    def __init__(
        self,
        host: Host,
        entry: Entry,
        ticket: Ticket | None,
        loop: asyncio.AbstractEventLoop,
        *,
        prepare: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._host = host
        self._entry = entry
        self._ticket = ticket  # its place in the queue; None: it needs none
        self._loop = loop
        self._prepare = prepare

    async def __aenter__(self) -> "Stream":
        if self._prepare is not None:  # may refuse what takes too long to be looked at before
            await self._prepare()
        self._host.begin(self._entry, self._ticket)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._host.end(self._entry)

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> RequestOutput:
        entry = self._entry
        while not entry.answer.has_news:
            if entry.error is not None:
                raise entry.error
            if entry.answer.finished:
                raise StopAsyncIteration
            entry.unread_since_s = None  # it waits: it is not slow
            entry.waiter = self._loop.create_future()
            try:
                await entry.waiter
            finally:
                entry.waiter = None
        entry.unread_since_s = None
        entry.num_unread_bytes = 0
        return entry.answer.news()
