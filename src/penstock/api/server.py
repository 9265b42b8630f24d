"""The listening socket, the signals and the end: start, serve, drain, leave. Called by `penstock serve`.

The first SIGTERM or SIGINT drains: not ready at once, nothing new is taken, what runs may end within its
limit. The second stops at once. SIGHUP does nothing.
"""

import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from penstock.api.app import make_app
from penstock.api.context import Context
from penstock.api.engine_face import Engine
from penstock.api.keys import Keys
from penstock.api.protocol import KEEP_ALIVE_S, make_protocol
from penstock.config import ServerConfig
from penstock.errors import ConfigError, EngineError, PenstockError

BACKLOG = 2048
FLUSH_S = 1.0  # after draining: for the last bytes to leave
Starter = Callable[[], Awaitable[Engine]]


def bind(config: ServerConfig, keys: Keys) -> socket.socket:
    """The socket, before anything is loaded: a port in use is known at once. Refuses to be open to others."""
    if not keys.are_needed and not config.insecure_no_auth and not is_loopback(config.host):
        raise ConfigError(
            f"{config.host} can be reached from other machines and there is no API key; set PENSTOCK_API_KEY "
            "or --api-key-file, listen on 127.0.0.1, or say --insecure-no-auth."
        )
    if not 0 <= config.port <= 65535:
        raise ConfigError(f"port is {config.port}; ports are 0 to 65535.")
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, number)
    except OSError as error:
        raise ConfigError(f"host is {config.host!r:.80}, which is no address ({error.strerror}).") from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"cannot listen on {config.host} port {config.port} ({error.strerror}); choose another --port."
        ) from None
    bound.setblocking(False)
    return bound


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def url_of(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}"


class Server:
    """One listening socket around one Context. `run` returns when the server has left."""

    def __init__(self, context: Context, bound: socket.socket) -> None:
        self._context = context
        self._bound = bound
        self._state = ServerState()
        self._leave = asyncio.Event()  # a first signal, or the engine has given up
        self._leave_now = asyncio.Event()

    async def run(self, start: Starter, on_ready: Callable[[], None], *, takes_signals: bool = True) -> int:
        """Listen at once, load, serve until a signal. The exit code: 0, or 70 where the engine gave up."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._note_defect)
        if takes_signals:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.signalled)
            loop.add_signal_handler(signal.SIGHUP, lambda: None)
        listener = await self._listen(loop)
        clock = loop.create_task(self._keep_date())
        code = 0
        try:
            starting = asyncio.ensure_future(start())
            if not await self._unless_leaving(starting):
                return 0
            self._context.loaded = starting.result()
            on_ready()
            watching = asyncio.ensure_future(self._context.engine.wait_stopped())
            if await self._unless_leaving(watching):
                failure = watching.result()
                code = EngineError.exit_code
                self._context.log.write("giving_up", why=str(failure))
            else:
                await self._drain()
        finally:
            clock.cancel()
            listener.close()
            await self._close()
        return code

    def signalled(self) -> None:
        """Somebody wants us to leave; the second time, now."""
        if self._leave.is_set():
            self._leave_now.set()
        self._leave.set()

    async def _listen(self, loop: asyncio.AbstractEventLoop) -> asyncio.AbstractServer:
        logging.getLogger("uvicorn.error").disabled = True  # ours says it, as JSON
        config = uvicorn.Config(
            make_app(self._context),
            http=make_protocol(self._context.limits, self._refused),
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_keep_alive=int(KEEP_ALIVE_S),
            ws="none",
        )
        config.load()
        kind = config.http_protocol_class
        self._set_date()
        return await loop.create_server(
            lambda: kind(config=config, server_state=self._state, app_state={}),  # type: ignore[call-arg]
            sock=self._bound,
            backlog=BACKLOG,
        )

    def _note_defect(self, loop: asyncio.AbstractEventLoop, told: dict[str, Any]) -> None:
        """An error that nobody awaited (Any: asyncio's). Its own words would wait for standard error."""
        del loop
        error = told.get("exception")
        if isinstance(error, BaseException):
            self._context.log_defect(error, "loop", "")

    def _refused(self, status: int) -> None:
        self._context.counters.count("refused", "other", status, 0.0)

    async def _keep_date(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self._set_date()

    def _set_date(self) -> None:
        self._state.default_headers = [
            (b"date", formatdate(usegmt=True).encode()),
            (b"server", b"penstock"),
        ]

    async def _unless_leaving(self, task: "asyncio.Future[Any]") -> bool:
        """Wait for the task (Any: whatever it gives) or for a signal; True where the task was first."""
        leaving = asyncio.ensure_future(self._leave.wait())
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        if task.done():
            return True
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, PenstockError):
            await task
        return False

    async def _drain(self) -> None:
        """Take nothing new, let what runs end; a second signal or the limit ends the wait."""
        limit_s = self._context.limits.drain_s
        self._context.log.write("draining", limit_s=limit_s)
        draining = asyncio.ensure_future(self._context.engine.drain(limit_s))
        hurried = asyncio.ensure_future(self._leave_now.wait())
        await asyncio.wait({draining, hurried}, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not draining.done():
            draining.cancel()
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_S):
                while any(not task.done() for task in self._state.tasks):
                    await asyncio.sleep(0.01)

    async def _close(self) -> None:
        for task in list(self._state.tasks):
            task.cancel()
        if self._state.tasks:
            await asyncio.wait(list(self._state.tasks), timeout=FLUSH_S)
        for connection in list(self._state.connections):
            connection.shutdown()
        if self._context.loaded is not None:
            await self._context.loaded.stop()
        self._context.log.close()


def serve(context: Context, bound: socket.socket, start: Starter, on_ready: Callable[[], None]) -> int:
    """Run the server on uvloop until it leaves; the exit code."""
    import uvloop

    async def main() -> int:
        return await Server(context, bound).run(start, on_ready)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())
