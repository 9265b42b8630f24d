"""One line of OpenAI's batch file -> one line of its answer, through the server's own application: no socket.

Called by `penstock batch`. What a line's request is answered is what the server would answer it; what is no
request (no JSON, another method, a stream) becomes an error line, never an exception.
"""

import asyncio
import secrets
from typing import Any, Final

import msgspec
from starlette.types import ASGIApp, Message, Scope

URLS: Final = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
MAX_ID_CHARS: Final = 512
BUSY: Final = 503
RETRIES: Final = 20  # of a server that says so: it is ours, and is busy or comes back
MAX_PAUSE_S: Final = 5.0


class BatchLine(msgspec.Struct, frozen=True):
    """One request of a batch."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw  # as it stands: the route reads it


class _Streams(msgspec.Struct, frozen=True):
    stream: Any = None  # Any: for the route to judge, unless it is true


class LineError(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a line was not asked. `line` counts from 1; it tells a resumed run which lines were judged."""

    code: str
    message: str
    line: int = 0


class LineResponse(msgspec.Struct, frozen=True):
    status_code: int
    request_id: str
    body: msgspec.Raw


class LineAnswer(msgspec.Struct, frozen=True):
    """A line of the output: `response` or `error`."""

    id: str
    custom_id: str | None
    response: LineResponse | None
    error: LineError | None


class NotALineError(ValueError):
    """`error` says what is wrong; `custom_id` is the line's, where it could be read."""

    def __init__(self, code: str, message: str, custom_id: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.custom_id = custom_id


def read_line(text: bytes) -> BatchLine:
    """NotALineError: it asks for nothing that a batch may hold."""
    try:
        line = msgspec.json.decode(text, type=BatchLine)
        streams = msgspec.json.decode(line.body, type=_Streams).stream
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise NotALineError("invalid_line", f"the line is no batch request: {error}"[:300]) from None
    if not line.custom_id or len(line.custom_id) > MAX_ID_CHARS:
        raise NotALineError("invalid_custom_id", f"custom_id must have 1 to {MAX_ID_CHARS} characters.")
    if line.method != "POST":
        raise NotALineError("invalid_method", f"method is {line.method!r:.40}; use POST.", line.custom_id)
    if line.url not in URLS:
        raise NotALineError(
            "invalid_url", f"url is {line.url!r:.80}; it must be one of {', '.join(URLS)}.", line.custom_id
        )
    if streams:
        raise NotALineError("invalid_body", "a batch does not stream; leave stream out.", line.custom_id)
    return line


def refusal_of(error: NotALineError, number: int) -> LineAnswer:
    return LineAnswer(new_id(), error.custom_id, None, LineError(error.code, str(error), number))


def new_id() -> str:
    return f"batch_req_{secrets.token_hex(12)}"


async def answer(app: ASGIApp, line: BatchLine) -> LineAnswer | None:
    """Ask the application. A 503 is asked again: nobody else is there to come in between.

    None: it was no other answer, for minutes. The line stays unanswered; another run asks it again.
    """
    body = bytes(line.body)
    for attempt in range(RETRIES):
        if attempt:
            await asyncio.sleep(min(MAX_PAUSE_S, 0.1 * 2**attempt))
        response = await _ask(app, line.url, body)
        if response.status_code != BUSY:
            return LineAnswer(new_id(), line.custom_id, response, None)
    return None


async def _ask(app: ASGIApp, url: str, body: bytes) -> LineResponse:
    scope: Scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": url, "raw_path": url.encode(), "root_path": "", "query_string": b"", "client": None,
        "server": ("localhost", 0), "state": {},
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
    }  # fmt: skip
    is_read = False
    status, request_id, parts = 500, "", bytearray()

    async def receive() -> Message:
        nonlocal is_read
        if is_read:
            await asyncio.Event().wait()  # this client does not leave
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status, request_id
        if message["type"] == "http.response.start":
            status = message["status"]
            request_id = dict(message["headers"]).get(b"x-request-id", b"").decode()
        else:
            parts.extend(message.get("body", b""))

    await app(scope, receive, send)
    return LineResponse(status, request_id, msgspec.Raw(bytes(parts)))
