"""A day's requests through `penstock serve`, of every kind that its routes take: does the front end grow?

For leaks. What the engine computes is next to nothing (cases/micro.toml); what is tried is HTTP, templates,
tokenizing, grammars, streams, clients that leave, refusals of all sorts, and a queue that is full now and
then. Words are new each time, so that caches fill to their bounds within the warm-up.
"""

import asyncio
import contextlib
import json
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from benchmarks import slope
from benchmarks.client import Reply, ask, open_socket, post, read_reply
from benchmarks.models import make, read_case
from benchmarks.served import Served, resident_bytes, served, wait_until_idle
from benchmarks.traffic import BAD, MODEL
from penstock.bench.record import Row

NUM_CLIENTS = 8
NUM_SAMPLES = 480
TELL_EVERY_S = 30.0
NUM_TINY = 64  # prompts of one call
NUM_QUEUED = 600  # what the server lets wait: a crowd is more, the clients are not
CONFIG = f"""
[engine]
max_context = 1024
max_requests = 32
memory_bytes = 4194304
[limits]
idle_write_s = 5
queued_requests = {NUM_QUEUED}
"""
COMPLETIONS, CHAT, MESSAGES = "/v1/completions", "/v1/chat/completions", "/v1/messages"
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "parameters": {"type": "object", "properties": {"q": {"type": "string"}}},
    },
}
Asked = tuple[str, dict[str, Any], int]  # route, body (Any: JSON), requests as the engine counts them


def words(random: Random, count: int) -> str:
    return "".join(f" w{random.randrange(10**7)}" for _ in range(count))


def said(random: Random) -> list[dict[str, str]]:
    return [{"role": "user", "content": words(random, random.randrange(1, 8))}]


def many(random: Random) -> Asked:
    prompts = [words(random, 1) for _ in range(NUM_TINY)]
    return COMPLETIONS, {"prompt": prompts, "max_tokens": 1, "ignore_eos": True}, NUM_TINY


def text(random: Random) -> Asked:
    more = random.choice(
        ({}, {"n": 2}, {"logprobs": 3}, {"stop": ["zz", "q7"]}, {"echo": True, "logprobs": 1})
    )
    body = {
        "prompt": words(random, 6),
        "max_tokens": 8,
        "stream": random.random() < 0.5 and "echo" not in more,
    }
    return COMPLETIONS, body | more, 2 if "n" in more else 1


def chat(random: Random) -> Asked:
    more = random.choice(({}, {"logprobs": True, "top_logprobs": 2}, {"tools": [TOOL]}, {"n": 2}))
    body = {"messages": said(random), "max_tokens": 8, "stream": random.random() < 0.5}
    return CHAT, body | more, 2 if "n" in more else 1


def messages(random: Random) -> Asked:
    return MESSAGES, {"messages": said(random), "max_tokens": 8, "stream": random.random() < 0.5}, 1


def grammar(random: Random) -> Asked:
    pattern = f"[a-z ]{{1,{random.randrange(2, 60)}}}{random.randrange(10**6)}"
    return COMPLETIONS, {"prompt": " x", "guided_regex": pattern, "max_tokens": 12}, 1


def embeddings(random: Random) -> Asked:
    return "/v1/embeddings", {"input": [words(random, 3) for _ in range(4)]}, 4


def counting(random: Random) -> Asked:
    return random.choice(
        (
            ("/tokenize", {"prompt": words(random, 20)}, 0),
            ("/detokenize", {"tokens": [random.randrange(500) for _ in range(20)]}, 0),
            ("/v1/messages/count_tokens", {"messages": said(random)}, 0),
        )
    )


def late(random: Random) -> Asked:
    return (
        COMPLETIONS,
        {"prompt": words(random, 30), "max_tokens": 200, "ignore_eos": True, "timeout": 0.001},
        0,
    )


KINDS: Mapping[Callable[[Random], Asked], int] = {
    many: 20, text: 20, chat: 12, messages: 8, grammar: 1, embeddings: 6, counting: 8, late: 2,
}  # fmt: skip
PAGES = ("/metrics", "/health?deep=1", "/v1/models", "/version", "/nowhere", "/")
CROWD_EVERY = 400  # calls
BOUNDED_SERIES = "penstock_http_"  # by our routes, methods and statuses: some are met late


class Day:
    """Clients who ask without a pause. `num_requests`: what the server has answered since `prepare`."""

    def __init__(self, port: int, seed: int) -> None:
        self.random = Random(seed)
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.num_requests = self.num_calls = 0
        self._port = port
        self._kinds: dict[Callable[[], Awaitable[None]], int] = {
            **{partial(self._ask, kind): share for kind, share in KINDS.items()},
            self._leaver: 8, self._bad: 8, self._pages: 5, self._kept: 4,
        }  # fmt: skip

    async def prepare(self) -> None:
        """Each kind once, so that workers and threads are there and what is counted has been counted."""
        for one in self._kinds:
            await one()
        for path in PAGES:
            await self._page(path)
        await self._crowd()
        self.num_requests = 0

    async def run(self, num_requests: int, after_call: Callable[[], None] = lambda: None) -> None:
        """Until there are so many."""
        await asyncio.gather(*(self._client(num_requests, after_call) for _ in range(NUM_CLIENTS)))

    async def _client(self, num_requests: int, after_call: Callable[[], None]) -> None:
        kinds, shares = list(self._kinds), list(self._kinds.values())
        while self.num_requests < num_requests:
            self.num_calls += 1
            if self.num_calls % CROWD_EVERY == 0:
                await self._crowd()
            (one,) = self.random.choices(kinds, shares)
            await one()
            after_call()

    async def _ask(self, kind: Callable[[Random], Asked]) -> None:
        path, body, num_requests = kind(self.random)
        reply = await ask(self._port, post(path, {"model": MODEL, **body}))
        allowed = (503, 504) if kind is late else (200, 503)
        self._note(kind.__name__, reply, allowed)
        if reply.status == 200:
            self.num_requests += num_requests

    def _note(self, kind: str, reply: Reply, allowed: tuple[int, ...]) -> None:
        self.seen[f"{kind} {reply.status}"] += 1
        if reply.status not in allowed:
            self.wrong.append(f"{kind}: status {reply.status} {reply.body[:200]!r}")

    async def _leaver(self) -> None:
        """Says what it wants, or a part of it; reads nothing, or the beginning; and is gone."""
        path, body, _ = self.random.choice((many, text, chat, messages))(self.random)
        body["max_tokens"] = 100
        data = post(path, {"model": MODEL, **body})
        self.seen["leaver"] += 1
        with contextlib.suppress(OSError):
            reader, writer = await open_socket(self._port)
            writer.write(data[: self.random.randrange(len(data))] if self.random.random() < 0.3 else data)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.random.expovariate(50)):
                    await reader.read(100)
            writer.transport.abort()

    async def _bad(self) -> None:
        self._note("bad", await ask(self._port, post(COMPLETIONS, self.random.choice(BAD))), (400, 404))

    async def _crowd(self) -> None:
        """More than may wait."""
        await asyncio.gather(*(self._ask(many) for _ in range(NUM_QUEUED // NUM_TINY + 2)))

    async def _pages(self) -> None:
        await self._page(self.random.choice(PAGES))

    async def _page(self, path: str) -> None:
        reply = await ask(self._port, f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
        self._note("pages", reply, (404,) if path == "/nowhere" else (200,))

    async def _kept(self) -> None:
        """Several calls on one connection, the second sent before the first is answered."""
        head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
        reader, writer = await open_socket(self._port)
        bodies = [
            json.dumps({"model": MODEL, "prompt": words(self.random, 3), "max_tokens": 3}) for _ in "123"
        ]
        calls = [f"{head}content-length: {len(body)}\r\n\r\n{body}".encode() for body in bodies]
        writer.write(calls[0] + calls[1])
        for call in (calls[2], b"", b""):
            await read_reply(reader, reply := Reply(), time.perf_counter())
            self._note("kept", reply, (200, 503))
            self.num_requests += reply.status == 200
            writer.write(call)
        writer.close()


class Samples:
    """Of the memory of both processes, so many in a day; a line now and then."""

    def __init__(self, server: Served, day: Day, num_requests: int) -> None:
        self.front: list[slope.Point] = []
        self.engine: list[slope.Point] = []
        self._server = server
        self._day = day
        self._step = num_requests / NUM_SAMPLES
        self._told_s = 0.0

    def take(self) -> None:
        done = self._day.num_requests
        if done < len(self.front) * self._step:
            return
        engine = self._server.engine()
        assert engine is not None, "nobody killed it"
        self.front.append((done, resident_bytes(self._server.front)))
        self.engine.append((done, resident_bytes(engine)))
        if time.monotonic() - self._told_s > TELL_EVERY_S:
            self._told_s = time.monotonic()
            print(
                f"{done:9,} requests in {self._day.num_calls:,} calls, front {self.front[-1][1] / 2**20:.2f} "
                f"MiB, engine {self.engine[-1][1] / 2**20:.2f} MiB",
                flush=True,
            )


def ask_for_a_day(num_requests: int, seed: int, row: Row) -> bool:
    """What came of it, in the row and told; False where something was wrong or not given back."""
    with tempfile.TemporaryDirectory() as folder:
        model = str(make(read_case("micro"), Path(folder) / "micro"))
        with served("--model-name", MODEL, config=CONFIG, model=model) as server:
            day = Day(server.port, seed)
            asyncio.run(day.prepare())
            time.sleep(1.0)
            base, series = server.holdings(), set(server.gauges())
            samples = Samples(server, day, num_requests)
            asyncio.run(day.run(num_requests, samples.take))
            left = wait_until_idle(server, base, 30.0)
            left_over = {name: (base[name], left[name]) for name in base if left[name] != base[name]}
            new_series = {name for name in server.gauges() if name not in series}
            complaints = server.complaints()
    row |= {
        "seen": dict(sorted(day.seen.items())), "wrong": day.wrong[:20], "left_over": left_over,
        "new_series": sorted(new_series), "complaints": complaints[:20],
    }  # fmt: skip
    print(json.dumps(row["seen"]))
    print(f"wrong: {day.wrong[:5] or 'nothing'}; not given back (before, after): {left_over or 'nothing'}")
    print(f"new series: {sorted(new_series) or 'none'}; defects in the log: {complaints[:5] or 'none'}")
    fits = [slope.judge("front", samples.front, row), slope.judge("engine", samples.engine, row)]
    is_bounded = all(name.startswith(BOUNDED_SERIES) for name in new_series)
    return all(fits) and is_bounded and not (day.wrong or left_over or complaints)
