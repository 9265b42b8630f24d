"""HTTP/1.1 on one connection, with bounds that an application cannot set: uvicorn's protocol, made strict.

Refuses before any application runs: heads that are too long, too many or too slow; bodies that are too large;
framing that two servers could read differently. Ends what nobody reads: a client that left cancels its
request, whether or not it streams, and one that stops reading is let go.
"""

import asyncio
import time
import urllib.parse
from collections.abc import Callable
from typing import Any

import httptools
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from penstock.api.problem import RefusalError, body_of, problem_of
from penstock.engine.serving import Limits

MAX_URL_BYTES = 8 << 10
BODY_BYTES_PER_S = 16 << 10  # slower than this, a body has only `body_s`
LINGER_S = 2.0  # a refused client may finish sending, so that it reads why
LINGER_BYTES = 16 << 20
WRITE_HIGH_BYTES = 32 << 10  # unsent bytes of one connection before its stream waits
KEEP_ALIVE_S = 30.0


class Cycle(RequestResponseCycle):
    """One request and its answer. `refused`: the status that the protocol answered with in its place."""

    task: asyncio.Task[None] | None = None
    num_body_bytes = 0

    def cancel(self) -> None:
        if self.task is not None and not self.response_complete:
            self.task.cancel()

    async def run_asgi(self, app: ASGIApp) -> None:  # type: ignore[override]  # starlette's types
        """The application catches its own errors (door.py); what is left is a client that has gone."""
        try:
            await app(self.scope, self.receive, self.send)  # type: ignore[arg-type]  # one dict, two types
        except (asyncio.CancelledError, Exception):  # the door has logged what is a defect
            if not self.disconnected:
                self.transport.abort()
        finally:
            self.on_response = lambda: None
            self.task = None


class StrictProtocol(HttpToolsProtocol):
    """Subclassed with `limits` and `on_refusal` set; one object per connection."""

    limits: Limits
    on_refusal: Callable[[int], None]

    def __init__(self, *arguments: Any, **options: Any) -> None:  # Any: uvicorn's
        super().__init__(*arguments, **options)
        self._receiving: asyncio.TimerHandle | None = None  # a head or a body is being waited for
        self._writing: asyncio.TimerHandle | None = None  # somebody is not reading
        self._unsent_bytes = 0
        self._is_in_head = True
        self._num_head_bytes = 0
        self._body_since_s = 0.0
        self._refusal: RefusalError | None = None
        self._num_lingering_bytes: int | None = None  # None: what comes is parsed
        self._active: Cycle | None = None  # the request that is being answered; `cycle` is the last one read

    # -- a connection's life

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timers()
        super().connection_lost(exc)
        self.pipeline.clear()
        if self._active is not None:
            self._active.disconnected = True
            self._active.cancel()

    def data_received(self, data: bytes) -> None:
        if self._num_lingering_bytes is not None:
            self._num_lingering_bytes += len(data)
            if self._num_lingering_bytes > LINGER_BYTES:
                self.transport.abort()
            return
        if self._is_in_head:
            self._num_head_bytes += len(data)
            if self._receiving is None:
                self._wait_for_head()
        super().data_received(data)
        most = self.limits.header_bytes + MAX_URL_BYTES
        if self._is_in_head and self._num_head_bytes > most and self._num_lingering_bytes is None:
            self._refuse(_headers_too_large(self.limits))

    def _wait_for_head(self) -> None:
        self._is_in_head = True
        self._set_timer(self.limits.header_s, self._head_is_late)

    def _set_timer(self, seconds: float, then: Callable[[], None]) -> None:
        if self._receiving is not None:
            self._receiving.cancel()
        self._receiving = self.loop.call_later(seconds, then)

    def _stop_timers(self) -> None:
        for timer in (self._receiving, self._writing):
            if timer is not None:
                timer.cancel()
        self._receiving = self._writing = None
        self._unset_keepalive_if_required()

    # -- the head

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._num_url_bytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_URL_BYTES:
            self._stop(
                RefusalError(414, "uri_too_long", f"the target is longer than {MAX_URL_BYTES:,} bytes.")
            )

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        num_bytes = sum(len(n) + len(v) + 4 for n, v in self.headers) if len(self.headers) % 8 == 0 else 0
        if len(self.headers) > self.limits.headers or num_bytes > self.limits.header_bytes:
            self._stop(_headers_too_large(self.limits))

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._num_head_bytes = 0
        if self._receiving is not None:
            self._receiving.cancel()
            self._receiving = None
        if sum(len(name) + len(value) + 4 for name, value in self.headers) > self.limits.header_bytes:
            self._stop(_headers_too_large(self.limits))
        scope = self.scope
        version = self.parser.get_http_version()
        scope["http_version"] = version
        scope["method"] = self.parser.get_method().decode("ascii")
        self._check_framing(version)
        parsed = httptools.parse_url(self.url)
        if parsed.path is None:
            self._stop(RefusalError(400, "invalid_target", "the target of the request has no path."))
        scope["raw_path"] = parsed.path
        scope["path"] = urllib.parse.unquote(parsed.path.decode("ascii"))
        scope["query_string"] = parsed.query or b""
        before = self.cycle
        self.cycle = Cycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0"
            and self.parser.should_keep_alive()
            and not self.parser.should_upgrade(),
            on_response=self.on_response_complete,
        )
        self._body_since_s = time.monotonic()
        self._set_timer(self.limits.body_s, self._body_is_late)
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:  # pipelined: it waits for its turn, and nothing behind it is read
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def _check_framing(self, version: str) -> None:
        if version not in ("1.0", "1.1"):
            self._stop(RefusalError(400, "invalid_http", "this server speaks HTTP/1.1."))
        lengths = [value for name, value in self.headers if name == b"content-length"]
        codings = [value for name, value in self.headers if name == b"transfer-encoding"]
        if (lengths and codings) or len(lengths) > 1 or (codings and version == "1.0"):
            self._stop(
                RefusalError(
                    400,
                    "invalid_framing",
                    "the length of the body is said twice, or in a way that is not sure.",
                )
            )
        if codings and [c.strip().lower() for c in codings] != [b"chunked"]:
            self._stop(
                RefusalError(400, "invalid_framing", "the one transfer coding that is known is chunked.")
            )
        if lengths and int(lengths[0]) > self.limits.body_bytes:
            self._stop(_body_too_large(self.limits))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:  # Any: uvicorn's type
        task = self.loop.create_task(cycle.run_asgi(app))
        assert isinstance(cycle, Cycle), "made in on_headers_complete"
        cycle.task, self._active = task, cycle
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    # -- the body

    def on_body(self, body: bytes) -> None:
        cycle = self.cycle
        assert isinstance(cycle, Cycle), "made in on_headers_complete"
        cycle.num_body_bytes += len(body)
        if cycle.num_body_bytes > self.limits.body_bytes:
            self._stop(_body_too_large(self.limits))
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._receiving is not None:
            self._receiving.cancel()
            self._receiving = None
        self._is_in_head = True
        self._num_head_bytes = 0
        super().on_message_complete()

    def _body_is_late(self) -> None:
        elapsed_s = time.monotonic() - self._body_since_s
        cycle = self.cycle
        if isinstance(cycle, Cycle) and cycle.num_body_bytes >= BODY_BYTES_PER_S * elapsed_s:
            self._set_timer(1.0, self._body_is_late)
            return
        self._refuse(RefusalError(408, "request_timeout", "the body came too slowly; send it faster."))

    def _head_is_late(self) -> None:
        self._receiving = None
        if self._active is not None and not self._active.response_complete:
            return  # an answer is on its way; the next head has time
        if self._num_head_bytes == 0:
            self.transport.close()
            return
        self._refuse(RefusalError(408, "request_timeout", "the head of the request came too slowly."))

    # -- refusals

    def _stop(self, problem: RefusalError) -> None:
        """From within a callback of the parser: what is raised ends the parsing, and the answer follows."""
        self._refusal = problem
        raise problem

    def send_400_response(self, msg: str) -> None:
        """uvicorn calls this for whatever the parser refuses."""
        problem = self._refusal or RefusalError(400, "invalid_http", "this is no HTTP/1.1 request.")
        self._refuse(problem)

    def _refuse(self, problem: RefusalError) -> None:
        """Answer in the application's place and read no more; cancel what runs."""
        self._stop_timers()
        active = self._active
        if self.transport.is_closing():
            return
        if active is not None and not active.response_complete:
            active.keep_alive = False
            if (
                active is not self.cycle or not active.more_body
            ):  # not its fault: it is answered, then all ends
                self.pipeline.clear()
                self._num_lingering_bytes = 0
                return
            active.scope["state"]["refused"] = problem.http_status
            active.cancel()
            if active.response_started:
                return
            active.disconnected = True
        else:
            type(self).on_refusal(problem.http_status)
        body = body_of(problem_of(problem), request_id="", is_anthropic=False)
        head = [STATUS_LINE[problem.http_status]]
        for name, value in (
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"x-request-id", b"none"),
            (b"connection", b"close"),
        ):
            head += [name, b": ", value, b"\r\n"]
        self.transport.write(b"".join([*head, b"\r\n", body]))
        self._num_lingering_bytes = 0
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._receiving = self.loop.call_later(LINGER_S, self.transport.abort)

    # -- the answer

    def on_response_complete(self) -> None:
        assert self._active is not None, "it has answered"
        if not self._active.more_body:
            super().on_response_complete()
            self._watch_writing()
            if self._num_head_bytes and self._num_lingering_bytes is None:
                self._wait_for_head()
            return
        # answered before the body had come (401, 404 ...): what still comes is no request
        self.server_state.total_requests += 1
        self._stop_timers()
        self._num_lingering_bytes = 0
        self.flow.resume_reading()
        if not self.transport.is_closing():
            if self.transport.can_write_eof():
                self.transport.write_eof()
            self._receiving = self.loop.call_later(LINGER_S, self.transport.abort)

    def timeout_keep_alive_handler(self) -> None:
        if self._num_head_bytes == 0:
            super().timeout_keep_alive_handler()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def _watch_writing(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        if unsent and self._writing is None:
            self._unsent_bytes = unsent
            self._writing = self.loop.call_later(self.limits.idle_write_s, self._is_anything_read)

    def _is_anything_read(self) -> None:
        self._writing = None
        unsent = self.transport.get_write_buffer_size()
        if unsent and unsent >= self._unsent_bytes:
            self.transport.abort()
        else:
            self._watch_writing()


def _headers_too_large(limits: Limits) -> RefusalError:
    return RefusalError(
        431,
        "headers_too_large",
        f"the request has more than {limits.headers} headers or {limits.header_bytes:,} bytes; send fewer.",
    )


def _body_too_large(limits: Limits) -> RefusalError:
    return RefusalError(
        413, "request_too_large", f"the body is larger than {limits.body_bytes:,} bytes; send a smaller one."
    )


def make_protocol(limits: Limits, on_refusal: Callable[[int], None]) -> type[StrictProtocol]:
    return type("Protocol", (StrictProtocol,), {"limits": limits, "on_refusal": staticmethod(on_refusal)})
