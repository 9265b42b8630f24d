"""Twenty minutes of mixed traffic for `penstock serve`, and what is left of it when everybody has gone.

    python -m benchmarks.soak [--minutes 20] [--rate 0] [--seed 1] [--model NAME] [--out FILE]

Rate 0: it is found. Without a model it is one that costs next to nothing (cases/micro.toml): the server is
tried, not the mathematics. Lengths are those of the azure-conv-23 trace, a sixteenth of them; arrivals are
Poisson. 5 % of the clients leave early, 2 % send what must be refused, 1 % read slowly, 10 % compare all of
their answer with what the engine gave undisturbed, 20 % ask for many tiny answers at once, which is how a
small machine comes near the requests of the trace's day. In the first half the engine is killed twice a
minute; the second half has no kill, so that the growth of one engine process can be seen. Exits 1 where an
answer was wrong, a stream ended in no allowed way, a gauge, descriptor or thread was not given back, too many
calls failed, or memory grows beyond the rule of slope.py, which counts requests as the engine does.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import math
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

from benchmarks import slope
from benchmarks.client import Reply, ask, open_socket, post
from benchmarks.models import make, read_case
from benchmarks.served import Served, served, wait_until_idle
from penstock.bench import record

TRACE_SHARE = 16  # lengths are divided by it
INPUT_TOKENS = ((0, 29), (10, 207), (25, 396), (50, 1020), (75, 1189), (90, 2734), (95, 4083), (99, 4142))
OUTPUT_TOKENS = ((0, 16), (10, 54), (25, 85), (50, 129), (75, 395), (90, 424), (95, 451), (99, 601))
SAMPLE_S = 2.0
KILL_EVERY_S = 30.0
MIN_AVAILABILITY = 0.999  # of the calls that were let in
NUM_TINY = 64  # prompts of one call
MODEL = "soaked"
CONFIG = """
[engine]
max_context = 1024
max_requests = 16
memory_bytes = 33554432
[limits]
idle_write_s = 10
queue_wait_s = 20
queued_requests = 200
"""
CANARIES = (
    {"prompt": "def fib(n):\n", "temperature": 0, "max_tokens": 40},
    {"prompt": "class Stack:\n", "temperature": 1, "seed": 7, "max_tokens": 30},
    {"prompt": "import os\n", "temperature": 0.8, "seed": 3, "max_tokens": 25, "repetition_penalty": 1.2},
    {"prompt": "for i in range(", "temperature": 0.9, "seed": 5, "max_tokens": 30, "stop": ["):"]},
)
BAD = (
    b"", b"{", b"[]", b'{"model": "soaked"}', b'{"model":"soaked","prompt":"a","n":99}',
    b'{"model":"soaked","prompt":"a","temperature":NaN}', b'{"model":"other","prompt":"a"}',
    b'{"model":"soaked","prompt":[999999]}', b'{"model":"soaked","prompt":"a","best":1}',
    b'{"model":"soaked","prompt":"a","guided_regex":"(((("}', b"\xff\xfe" * 50,
)  # fmt: skip
PHRASES = (
    "x = ",
    "the cat sat ",
    "return self.",
    "3.14159 ",
    "\n    def ",
    "list of words ",
    "élan ",
    "if a > b:",
)


def drawn(random: Random, points: tuple[tuple[int, int], ...]) -> int:
    """A length: the inverse of the trace's distribution, log-linear between its percentiles."""
    share = random.uniform(0, 99)
    for (low, a), (high, b) in itertools.pairwise(points):
        if share <= high:
            length = math.exp(math.log(a) + (math.log(b) - math.log(a)) * (share - low) / (high - low))
            return max(1, round(length / TRACE_SHARE))
    raise AssertionError("the last point is beyond every share")


def body_of(random: Random) -> dict[str, object]:
    num_prompt, num_output = drawn(random, INPUT_TOKENS), drawn(random, OUTPUT_TOKENS)
    prompt = "".join(random.choice(PHRASES) for _ in range(num_prompt // 4 + 1))
    body: dict[str, object] = {
        "model": MODEL, "prompt": prompt, "max_tokens": num_output, "ignore_eos": True,
        "temperature": random.choice((0, 0.7, 1.0)), "seed": random.randrange(2**31),
        "stream": random.random() < 0.7,
    }  # fmt: skip
    if random.random() < 0.05:
        body["n"] = 2
    if random.random() < 0.05:
        body["logprobs"] = 3
    if random.random() < 0.03:
        body |= {"guided_regex": f"[a-z ]{{1,{random.randrange(20, 400)}}}", "ignore_eos": False}
    return body


class Traffic:
    """All clients, and the tally of what they saw."""

    def __init__(self, server: Served, seed: int) -> None:
        self.server = server
        self.random = Random(seed)
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.expected: list[str] = []
        self.num_requests = 0  # as the engine counts: prompts times n

    async def learn(self) -> None:
        """What the canaries are answered when nobody disturbs; and everything that is bad, once."""
        for data in BAD:
            await ask(self.server.port, post("/v1/completions", data))
        for canary in CANARIES:
            reply = await ask(self.server.port, post("/v1/completions", {"model": MODEL, **canary}))
            self.expected.append(reply.text)

    async def one(self) -> None:
        draw = self.random.random()
        if draw < 0.05:
            await self._leaver()
        elif draw < 0.07:
            await self._bad()
        elif draw < 0.08:
            await self._slow()
        elif draw < 0.18:
            await self._canary()
        elif draw < 0.38:
            await self._many()
        else:
            body = body_of(self.random)
            reply = await ask(self.server.port, post("/v1/completions", body))
            self._note("plain", reply, 2 if "n" in body else 1)

    def _note(self, kind: str, reply: Reply, num_requests: int) -> None:
        status = reply.status
        self.seen[f"{kind} {status}"] += 1
        if status == 200:
            self.num_requests += num_requests
        if status not in (200, 503, 504):  # the queue may be full, a wait too long; nothing else
            self.wrong.append(f"{kind}: status {status}")
        elif status == 200 and not reply.is_whole:
            errors = [event["error"] for event in reply.events if "error" in event]
            if len(errors) == 1:  # an error event and no [DONE]: failed, and told so
                self.seen[f"{kind} 200"] -= 1
                self.seen[f"{kind} failed: {errors[0]['code']}"] += 1
            else:
                self.wrong.append(f"{kind}: a stream without its end")

    @property
    def availability(self) -> float:
        """Whole answers among the calls that were let in."""
        whole = sum(count for name, count in self.seen.items() if name.endswith(" 200"))
        failed = sum(count for name, count in self.seen.items() if name.endswith(" 504") or "failed" in name)
        return (whole - len(self.wrong)) / max(1, whole + failed)

    async def _many(self) -> None:
        """Many prompts of a few words, a token for each."""
        prompts = ["".join(self.random.choices(PHRASES, k=2)) for _ in range(NUM_TINY)]
        body = {
            "model": MODEL, "prompt": prompts, "max_tokens": 1, "temperature": 1,
            "seed": self.random.randrange(2**31), "ignore_eos": True,
        }  # fmt: skip
        self._note("many", await ask(self.server.port, post("/v1/completions", body)), NUM_TINY)

    async def _canary(self) -> None:
        number = self.random.randrange(len(CANARIES))
        body = {"model": MODEL, **CANARIES[number], "stream": self.random.random() < 0.5}
        reply = await ask(self.server.port, post("/v1/completions", body))
        self._note("canary", reply, 1)
        if reply.status == 200 and reply.is_whole and reply.text != self.expected[number]:
            self.wrong.append(f"canary {number}: {reply.text!r} is not {self.expected[number]!r}")

    async def _bad(self) -> None:
        reply = await ask(self.server.port, post("/v1/completions", self.random.choice(BAD)))
        self.seen[f"bad {reply.status}"] += 1
        if not (400 <= reply.status < 500 or reply.status == 503):
            self.wrong.append(f"bad: status {reply.status}")

    async def _leaver(self) -> None:
        """Says what it wants, or a part of it, and is gone."""
        self.seen["leaver"] += 1
        data = post("/v1/completions", body_of(self.random))
        with contextlib.suppress(OSError):
            _, writer = await open_socket(self.server.port)
            writer.write(data[: self.random.randrange(len(data))] if self.random.random() < 0.3 else data)
            await asyncio.sleep(self.random.expovariate(5))
            writer.transport.abort()

    async def _slow(self) -> None:
        """Reads a few bytes now and then."""
        body = {**body_of(self.random), "stream": True, "logprobs": 5}
        got = b""
        with contextlib.suppress(OSError, TimeoutError):
            reader, writer = await open_socket(self.server.port, 2048)
            writer.write(post("/v1/completions", body))
            async with asyncio.timeout(60):
                while piece := await reader.read(512):
                    got += piece
                    await asyncio.sleep(0.05)
            writer.close()
        self.seen["slow, whole" if b"data: [DONE]" in got else "slow, cut"] += 1


async def offer(traffic: Traffic, rate: float, until_s: float) -> None:
    """Open loop: who comes does not wait for those before."""
    tasks: set[asyncio.Task[None]] = set()
    due_s = time.monotonic()
    while (due_s := due_s + traffic.random.expovariate(rate)) < until_s:
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        task = asyncio.create_task(traffic.one())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)


async def found_rate(traffic: Traffic, seconds: float) -> float:
    """Half of what eight clients got who asked without a pause."""
    end_s = time.monotonic() + seconds
    count = 0

    async def client() -> None:
        nonlocal count
        while time.monotonic() < end_s:
            await traffic.one()
            count += 1

    await asyncio.gather(*(client() for _ in range(8)))
    return count / seconds / 2


class Watcher:
    """Samples of both processes; kills the engine now and then until `last_kill_s`."""

    def __init__(self, server: Served, traffic: Traffic) -> None:
        self._server = server
        self._traffic = traffic
        self.front: list[slope.Point] = []
        self.engine: list[slope.Point] = []  # of the process that runs
        self._pid = 0
        self.num_kills = 0

    async def run(self, last_kill_s: float) -> None:
        began_s = time.monotonic()
        next_kill_s = began_s + KILL_EVERY_S
        next_line_s = began_s + 60
        while True:
            await asyncio.sleep(SAMPLE_S)
            now_s = time.monotonic()
            engine, num_requests = self._server.engine(), self._traffic.num_requests
            front = self._server.front.memory_info().rss
            self.front.append((num_requests, front))
            if engine is not None:
                if engine.pid != self._pid:
                    self._pid, self.engine = engine.pid, []
                self.engine.append((num_requests, engine.memory_info().rss))
            if now_s > next_line_s:
                next_line_s += 60
                rss = self.engine[-1][1] if self.engine else 0
                print(
                    f"{(now_s - began_s) / 60:5.1f} min {num_requests:8,} requests, front "
                    f"{front / 2**20:.2f} MiB, engine {rss / 2**20:.2f} MiB, {self.num_kills} kills, "
                    f"{len(self._traffic.wrong)} wrong",
                    flush=True,
                )
            if engine is not None and next_kill_s < now_s < last_kill_s:
                next_kill_s += KILL_EVERY_S
                engine.send_signal(signal.SIGKILL)
                self.num_kills += 1


async def run(server: Served, args: argparse.Namespace, row: record.Row) -> bool:
    traffic = Traffic(server, args.seed)
    await traffic.learn()
    rate = args.rate or await found_rate(traffic, 10.0)
    minutes_s = args.minutes * 60
    print(f"{rate:.1f} calls a second for {args.minutes:g} minutes", flush=True)
    await offer(traffic, rate, time.monotonic() + min(20.0, minutes_s / 4))  # pools and caches fill
    await asyncio.sleep(12.0)  # the slow readers are let go
    base = server.holdings()
    num_series = len(server.gauges())
    traffic.seen.clear()
    traffic.num_requests = 0
    began_s = time.monotonic()
    watcher = Watcher(server, traffic)
    watching = asyncio.create_task(watcher.run(began_s + minutes_s / 2))
    await offer(traffic, rate, began_s + minutes_s)
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    left = await asyncio.to_thread(wait_until_idle, server, base, 30.0)
    left_over = {name: (base[name], left[name]) for name in base if left[name] != base[name]}
    num_calls = sum(traffic.seen.values())
    row |= {
        "minutes": args.minutes, "calls": num_calls, "requests": traffic.num_requests, "seed": args.seed,
        "kills": watcher.num_kills, "seen": dict(sorted(traffic.seen.items())), "wrong": traffic.wrong[:20],
        "num_wrong": len(traffic.wrong), "left_over": left_over, "series": (num_series, len(server.gauges())),
        "complaints": len(server.complaints()), "holdings": left, "availability": traffic.availability,
    }  # fmt: skip
    print(f"{num_calls:,} calls, {watcher.num_kills} kills: {json.dumps(row['seen'])}")
    print(f"{traffic.num_requests:,} requests; {traffic.availability:.3%} of the calls let in were answered")
    print(f"wrong: {len(traffic.wrong)} {traffic.wrong[:5] or ''}")
    print(f"not given back (before, after): {left_over or 'nothing'}; series: {row['series']}")
    print(f"defects in the log: {row['complaints']}")
    fits = [slope.judge("front", watcher.front, row), slope.judge("engine", watcher.engine, row)]
    is_clean = not traffic.wrong and not left_over and not row["complaints"]
    row["memory_judged"] = None not in fits
    return False not in fits and is_clean and traffic.availability >= MIN_AVAILABILITY


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", default="")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/soak.jsonl"))
    args = parser.parse_args()
    row: record.Row = {"case": "soak"} | record.stamp("auto", 1)
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or str(make(read_case("micro"), Path(folder) / "micro"))
        with served("--model-name", MODEL, config=CONFIG, model=model) as server:
            passes = asyncio.run(run(server, args, row))
    row["passes"] = passes
    record.append(args.out, row)
    is_judged = "" if row["memory_judged"] else ", but for memory, which so few requests do not judge"
    print(f"passes{is_judged}" if passes else "FAILS")
    return 0 if passes else 1


if __name__ == "__main__":
    sys.exit(main())
