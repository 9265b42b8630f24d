"""A server on a real socket, in a thread of its own, for whatever engine a test hands in."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

import httpx
import pytest
from tests.fakes.serving import LocalEngine, ScriptedEngine

from penstock import LLM
from penstock.api.context import Context
from penstock.api.keys import Keys
from penstock.api.log import JsonLog
from penstock.api.server import Server, bind, url_of
from penstock.config import ServerConfig
from penstock.engine.serving import Limits


@dataclass
class Running:
    url: str
    port: int
    engine: Any
    context: Context
    log: StringIO
    server: Server
    loop: asyncio.AbstractEventLoop
    thread: threading.Thread
    codes: list[int] = field(default_factory=list)

    def stop(self, *, at_once: bool = True) -> None:
        def signal() -> None:
            self.server.signalled()
            if at_once:
                self.server.signalled()

        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(signal)
        self.thread.join(10)
        assert not self.thread.is_alive()

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, **options)


Start = Callable[..., Running]


@pytest.fixture(scope="session")
def llm() -> LLM:
    return LLM("penstock-tiny", backend="cpu", threads=1, memory_bytes=64 << 20)


@contextlib.contextmanager
def running(
    engine: Any, *, keys: tuple[str, ...] = (), limits: Limits | None = None, **config: Any
) -> Iterator[Running]:
    asked = ServerConfig(port=0, **config)
    known = Keys(keys)
    bound = bind(asked, known)
    lines = StringIO()
    context = Context(asked, known, JsonLog(lines), limits or engine.limits)
    is_ready = threading.Event()
    codes: list[int] = []
    made: list[Any] = []

    async def start() -> Any:
        return engine

    async def main() -> None:
        server = Server(context, bound)
        made.extend((server, asyncio.get_running_loop()))
        codes.append(await server.run(start, is_ready.set, takes_signals=False))

    def run() -> None:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())

    url = url_of(bound)
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert is_ready.wait(20), "the server did not start"
    server = Running(
        url, int(url.rpartition(":")[2]), engine, context, lines, made[0], made[1], thread, codes
    )
    try:
        yield server
    finally:
        server.stop()
        context.log.close()
        defects = [line for line in lines.getvalue().splitlines() if '"event": "defect"' in line]
        assert not defects, "an error of our own while answering"


@pytest.fixture
def serve() -> Iterator[Start]:
    """serve(engine, **ServerConfig): a running server; all are stopped after the test."""
    with contextlib.ExitStack() as stack:
        yield lambda engine, **options: stack.enter_context(running(engine, **options))


@pytest.fixture(scope="module")
def tiny(llm: LLM) -> Iterator[Running]:
    """penstock-tiny, generating for real."""
    with running(LocalEngine(llm)) as server:
        yield server


@pytest.fixture
def scripted(llm: LLM) -> Callable[..., ScriptedEngine]:
    return lambda *arguments, **options: ScriptedEngine(llm, *arguments, **options)
