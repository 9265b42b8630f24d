"""Server-sent events: frames rendered once around the text that changes, and the response that writes them.

Called by the streaming routes. Every stream ends in exactly one of {finish_reason and, for OpenAI, [DONE]} or
{an error event and nothing after it}: half an answer never looks whole.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from penstock.api.context import Context
from penstock.api.problem import ErrorAnswer, problem_of

ENCODER = msgspec.json.Encoder()
DONE = b"data: [DONE]\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


def event(data: object, name: str = "") -> bytes:
    """One frame. JSON holds no line break, so that `data:` is one line."""
    head = b"event: " + name.encode() + b"\ndata: " if name else b"data: "
    return head + ENCODER.encode(data) + b"\n\n"


def last_words(error: BaseException) -> bytes:
    """The event that ends an OpenAI stream which failed."""
    return event(ErrorAnswer(problem_of(error).body))


class Template:
    """An event in which only one text changes: the rest is encoded once.

    >>> Template({"a": "@", "b": 1}).frame("x")
    b'data: {"a":"x","b":1}\\n\\n'
    """

    def __init__(self, data: object) -> None:
        before, mark, after = ENCODER.encode(data).partition(b'"@"')
        assert mark, "the text's place is marked with @"
        self._before, self._after = b"data: " + before, after + b"\n\n"

    def frame(self, text: str) -> bytes:
        return self._before + ENCODER.encode(text) + self._after


class EventStream(Response):
    """The ASGI response of a stream. Runs in the request's own task: no task, no queue per stream.

    The head goes out with the first frame, so that an error before it is still an answer of its own. `frames`
    is closed however this ends, which aborts what still runs, and then `held`, the ticket; a later error
    becomes one last event, made by `refusal`.
    """

    def __init__(
        self,
        frames: AsyncGenerator[bytes, None],
        context: Context,
        refusal: Callable[[BaseException], bytes],
        held: ExitStack,
    ) -> None:
        self._frames = frames
        self._held = held
        self._context = context
        self._refusal = refusal

    async def open(self) -> "EventStream":
        """Everything that can be refused is refused here, before the 200."""
        try:
            self._first = await anext(self._frames)
        except BaseException:
            await self._close()
            raise
        return self

    async def _close(self) -> None:
        try:
            await self._frames.aclose()
        finally:
            self._held.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        counters = self._context.counters
        counters.num_open_streams += 1
        try:
            await send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
            await send({"type": "http.response.body", "body": self._first, "more_body": True})
            try:
                async for frame in self._frames:
                    await send({"type": "http.response.body", "body": frame, "more_body": True})
            except Exception as error:
                await send({"type": "http.response.body", "body": self._refusal(error), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            counters.num_open_streams -= 1
            await self._close()
