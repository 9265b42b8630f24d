"""Many open event streams that say nothing: what each of them costs the server.

    python -m benchmarks.streams [--streams 10000]

The server runs alone in a process of its own, with the tests' engine that answers one word and then nothing;
the clients are in this one. Prints KiB per stream and how long /live takes meanwhile; exits 1 beyond 32 KiB.
"""

import argparse
import asyncio
import contextlib
import os
import resource
import statistics
import subprocess
import sys
import time

import psutil

from benchmarks.client import ask, open_socket, post

MODEL = "penstock-tiny"
MAX_BYTES_EACH = 32 << 10
WARM_STREAMS = 200
AT_ONCE = 50
STREAM = post(
    "/v1/chat/completions",
    {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "stream": True},
)
LIVE = b"GET /live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"


def raise_file_limit(count: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    want = count + 500
    most = hard if hard != resource.RLIM_INFINITY else want
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(want, most), hard))


def serve(count: int) -> None:
    """The other process: says its port, serves until its standard input ends."""
    from tests.api.conftest import running
    from tests.fakes.serving import ScriptedEngine

    from penstock import LLM
    from penstock.engine.serving import Limits

    raise_file_limit(count)
    engine = ScriptedEngine(
        LLM(MODEL, backend="cpu", threads=1, memory_bytes=64 << 20), ["a"], hangs=True,
        limits=Limits(queued_requests=2 * count),
    )  # fmt: skip
    with running(engine, log_requests=False) as server:
        print(server.port, flush=True)
        sys.stdin.read()


class Clients:
    def __init__(self, port: int) -> None:
        self.port = port
        self.open: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def add(self, count: int) -> None:
        """`count` more streams, each past its first event."""
        gate = asyncio.Semaphore(AT_ONCE)

        async def one() -> None:
            async with gate:
                reader, writer = await open_socket(self.port)
                writer.write(STREAM)
                head = await reader.readuntil(b"\r\n\r\n")
                assert b" 200 " in head[:20], head
                await reader.readuntil(b"data: ")
                self.open.append((reader, writer))

        await asyncio.gather(*(one() for _ in range(count)))

    def close(self) -> None:
        for _, writer in self.open:
            writer.close()


async def run(port: int, server: psutil.Process, count: int) -> bool:
    clients = Clients(port)
    await clients.add(WARM_STREAMS)
    before = server.memory_info().rss
    began_s = time.monotonic()
    await clients.add(count)
    opened_s = time.monotonic() - began_s
    each = (server.memory_info().rss - before) / count
    cpu = server.cpu_times()
    waits = []
    for _ in range(100):
        waits.append((await ask(port, LIVE)).total_s)
        await asyncio.sleep(0.02)
    used = server.cpu_times()
    print(
        f"{count:,} streams opened in {opened_s:.0f} s: {each / 1024:.1f} KiB each; "
        f"/live median {1e3 * statistics.median(waits):.1f} ms, p99 {1e3 * sorted(waits)[98]:.1f} ms; "
        f"{(used.user + used.system - cpu.user - cpu.system):.2f} s of processor meanwhile"
    )
    clients.close()
    await asyncio.sleep(2)
    end_s = time.monotonic() + 30
    while (left := len(server.net_connections("tcp")) - 1) and time.monotonic() < end_s:
        await asyncio.sleep(0.5)
    print(f"connections left: {left}; memory then {(server.memory_info().rss - before) / 2**20:+.1f} MiB")
    return each <= MAX_BYTES_EACH and not left


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--serve", action="store_true", help="be the server")
    args = parser.parse_args(arguments)
    if args.serve:
        serve(args.streams)
        return 0
    raise_file_limit(args.streams)
    command = [sys.executable, "-m", "benchmarks.streams", "--serve", "--streams", str(args.streams)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    ) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            passes = asyncio.run(run(port, psutil.Process(process.pid), args.streams))
        finally:
            with contextlib.suppress(OSError):
                process.communicate(timeout=60)
            process.kill()
    print("passes" if passes else "FAILS")
    return 0 if passes else 1


if __name__ == "__main__":
    sys.exit(main())
