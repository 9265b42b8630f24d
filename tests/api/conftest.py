"""A server on a real socket, in a thread of its own, for whatever engine a test hands in."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

import httpx
import psutil
import pytest
from benchmarks.served import Served, served
from tests.fakes.serving import LocalEngine, ScriptedEngine

from penstock import LLM
from penstock.api.context import Context
from penstock.api.keys import Keys
from penstock.api.server import Server, bind, url_of
from penstock.config import ServerConfig
from penstock.engine.serving import Limits
from penstock.event_log import EventLog


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
    """`engine`: one that is there, or a function that starts one; then `limits` are needed."""
    asked = ServerConfig(port=0, **config)
    known = Keys(keys)
    bound = bind(asked, known)
    lines = StringIO()
    context = Context(asked, known, EventLog(lines), limits or engine.limits)
    is_ready = threading.Event()
    codes: list[int] = []
    made: list[Any] = []

    async def start() -> Any:
        return await engine() if callable(engine) else engine

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


class Started:
    """`penstock serve` with its engine process, for tests that are about that process or about keys."""

    def __init__(self, server: Served) -> None:
        self.server = server
        self.engine = server.engine
        engine = server.engine()
        assert engine is not None
        self.first_engine = engine.pid
        self._client = httpx.Client(base_url=server.url, timeout=60)  # a new one costs more than an answer

    def close(self) -> None:
        self._client.close()

    def ask(self, body: dict[str, Any], key: str = "") -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return self._client.post("/v1/completions", json=body, headers=headers)

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """(status, JSON)."""
        reply = self._client.post(path, json=body)
        return reply.status_code, reply.json()

    def memory_bytes(self) -> int:
        """Of all its processes."""
        return sum(process.memory_info().rss for process in self._processes())

    def cpu_s(self) -> float:
        """Of all its processes, and of those that have ended."""
        times = [process.cpu_times() for process in self._processes()]
        return sum(t.user + t.system + t.children_user + t.children_system for t in times)

    def _processes(self) -> list[psutil.Process]:
        return [self.server.front, *self.server.front.children(recursive=True)]

    def seconds(self, prompt: list[int], key: str) -> tuple[float, int]:
        """How long one token takes after this prompt, and how many of its tokens were cached."""
        body = {"model": "penstock-tiny", "prompt": prompt, "max_tokens": 1, "temperature": 0}
        began_s = time.perf_counter()
        reply = self.ask(body, key)
        taken_s = time.perf_counter() - began_s
        return taken_s, reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"]


@pytest.fixture(scope="module")
def served_server() -> Iterator[Started]:
    with served() as server, contextlib.closing(Started(server)) as started:
        yield started


@pytest.fixture(scope="module")
def guarded_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """Two keys: key-one-of-the-test, key-two-of-the-test."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("key-one-of-the-test\nkey-two-of-the-test\n")
    keys.chmod(0o600)
    with served("--api-key-file", str(keys)) as server, contextlib.closing(Started(server)) as started:
        yield started
