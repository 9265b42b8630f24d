"""Twenty minutes of mixed traffic for `penstock serve`, and what is left of it when everybody has gone.

    python -m benchmarks.soak [--minutes 20] [--rate 0] [--seed 1] [--model NAME] [--out FILE]

Rate 0: it is found. Without a model it is one that costs next to nothing (cases/micro.toml): the server is
tried, not the mathematics. Lengths are those of the azure-conv-23 trace, a sixteenth of them; arrivals are
Poisson. 5 % of the clients leave early, 2 % send what must be refused, 1 % read slowly, 10 % compare all of
their answer with what the engine gave undisturbed, 20 % ask for 64 tiny answers at once: those are 19 of 20
requests, which is how a small machine comes near the requests of the trace's day. Before anything is counted
the queue is full once, while the engine is dead: what its limits allow in memory is where growth begins. In
the first half the engine is killed twice a minute; the second half has no kill, so that the growth of one
engine process can be seen. Exits 1 where an answer was wrong, a stream ended in no allowed way, a gauge,
descriptor, thread or series of /metrics was not given back, too many calls failed, or memory grows beyond the
rule of slope.py, which counts requests as the engine does.
"""

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import slope
from benchmarks.models import make, read_case
from benchmarks.served import Served, resident_bytes, served, wait_until_idle
from benchmarks.traffic import MODEL, NUM_QUEUED, Traffic
from penstock.bench import record

SAMPLE_S = 2.0
KILL_EVERY_S = 30.0
MIN_AVAILABILITY = 0.999  # of the calls that were let in
# so few KV blocks have all been used soon: the pool's pages come with their first use, and are no growth
CONFIG = f"""
[engine]
max_context = 1024
max_requests = 16
memory_bytes = 4194304
[limits]
idle_write_s = 10
queue_wait_s = 20
queued_requests = {NUM_QUEUED}
"""


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


async def settle(traffic: Traffic, rate: float, seconds: float) -> None:
    """What fills once, fills: pools, caches, and the queue to its limit while the engine is dead."""
    waiting = asyncio.create_task(traffic.crowd())
    await asyncio.sleep(1.0)
    traffic.server.kill_engine()
    await waiting
    await offer(traffic, rate, time.monotonic() + seconds)
    await asyncio.sleep(12.0)  # the slow readers are let go


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
            front = resident_bytes(self._server.front)
            self.front.append((num_requests, front))
            if engine is not None:
                if engine.pid != self._pid:
                    self._pid, self.engine = engine.pid, []
                with contextlib.suppress(OSError):  # it may die meanwhile
                    self.engine.append((num_requests, resident_bytes(engine)))
            if now_s > next_line_s:
                next_line_s += 60
                rss = self.engine[-1][1] if self.engine else 0
                print(
                    f"{(now_s - began_s) / 60:5.1f} min {num_requests:8,} requests, front "
                    f"{front / 2**20:.2f} MiB, engine {rss / 2**20:.2f} MiB, {self.num_kills} kills, "
                    f"{len(self._traffic.wrong)} wrong",
                    flush=True,
                )
            if next_kill_s < now_s < last_kill_s and self._server.kill_engine():
                next_kill_s += KILL_EVERY_S
                self.num_kills += 1


async def run(server: Served, args: argparse.Namespace, row: record.Row) -> bool:
    traffic = Traffic(server, args.seed)
    await traffic.learn()
    rate = args.rate or await found_rate(traffic, 10.0)
    minutes_s = args.minutes * 60
    print(f"{rate:.1f} calls a second for {args.minutes:g} minutes", flush=True)
    await settle(traffic, rate, min(20.0, minutes_s / 4))
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
    is_clean = not (traffic.wrong or left_over or row["complaints"]) and num_series == row["series"][1]
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
