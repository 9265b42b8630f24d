"""Fuzzed requests for a real server with the real engine, each answer judged, and the server afterwards.

    python -m benchmarks.fuzz_http [--inputs 1000000] [--first 0] [--seed 1] [--clients 16]

An answer is 2xx or 4xx (503 and 504 where the queue or a clock says so) and an error has the one shape. At
the end: the same engine process, no defect in the log, the gauges and descriptors of before, at most 64 MiB
more, and a canary that is answered byte for byte as before. Exits 1 otherwise, and names failing inputs.
"""

import argparse
import asyncio
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from benchmarks.client import ask, open_socket, post
from benchmarks.http_inputs import MODEL, Input, made
from benchmarks.served import Served, served, wait_until_idle

CONFIG = """
[engine]
max_context = 256
max_requests = 16
memory_bytes = 33554432
[limits]
header_s = 2
body_s = 2
total_s = 20
"""
CANARY = post(
    "/v1/completions",
    {
        "model": MODEL,
        "prompt": "def fib(n):\n",
        "max_tokens": 40,
        "temperature": 0.9,
        "seed": 7,
        "logprobs": 2,
    },
)
GRAMMAR = post("/v1/completions", {"model": MODEL, "prompt": "x", "max_tokens": 2, "guided_regex": "[a-z]+"})
ERROR_TYPES = {
    "invalid_request_error", "authentication_error", "permission_error", "rate_limit_error", "server_error",
    "not_found_error", "request_too_large", "overloaded_error", "timeout_error", "api_error",
}  # fmt: skip
LEAKS = re.compile(rb"Traceback|/site-packages/|\.py\"|0x[0-9a-f]{8}|object at ")
ANSWER = re.compile(rb"HTTP/1\.[01] (\d{3}) (?:(?!HTTP/1\.[01] \d{3} ).)*", re.DOTALL)
MAX_GROWN_BYTES = 64 << 20
IDLE_S = 0.25  # an answer may be due or not: so long it is waited for, then the sending side is closed
GIVE_UP_S = 40.0
GRACE_S = 5.0


class Judge:
    """What was answered, and what may not be."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.failures: list[str] = []

    def judge(self, number: int, given: Input, answer: bytes) -> None:
        """All bytes that came back for one input: no answer, or answers, the last of them perhaps cut."""
        if not answer:
            self.seen[f"{given.kind} closed"] += 1
            if given.is_whole:
                self._fail(number, given, "a whole request was not answered")
            return
        found = re.match(rb"HTTP/1\.[01] (\d{3}) ", answer)
        if not found:
            self._fail(number, given, f"no HTTP: {answer[:80]!r}")
            return
        for one in ANSWER.finditer(answer):  # several, where requests are behind each other
            status = int(one[1])
            self.seen[f"{given.kind} {status}"] += 1
            if not (200 <= status < 300 or 400 <= status < 500 or status in (100, 503, 504, 505)):
                self._fail(number, given, f"status {status}: {answer[:600]!r}")
            elif status >= 400 and LEAKS.search(one[0]):
                self._fail(number, given, f"leaks: {one[0][-400:]!r}")
        if given.is_whole:
            self._check_body(number, given, int(found[1]), answer.partition(b"\r\n\r\n")[2])

    def _check_body(self, number: int, given: Input, status: int, body: bytes) -> None:
        if status == 200:
            return
        try:
            error = json.loads(body)["error"]
            is_right = {"message", "type", "param", "code"} == set(error) and error["type"] in ERROR_TYPES
            is_right &= isinstance(error["message"], str) and "\n" not in error["message"]
        except (ValueError, KeyError, TypeError):
            is_right = False
        if not is_right:
            self._fail(number, given, f"status {status}, no error of our shape: {body[:300]!r}")

    def _fail(self, number: int, given: Input, why: str) -> None:
        self.fail(f"input {number} ({given.kind}): {why}; sent {given.data[-300:]!r}")

    def fail(self, line: str) -> None:
        """At once, since a run may be stopped."""
        self.failures.append(line)
        print(line, flush=True)


async def exchange(port: int, given: Input) -> bytes:
    """Everything that comes back."""
    reader, writer = await open_socket(port)
    answer = b""
    has_closed = False
    is_due = not given.is_whole
    wait_s = GIVE_UP_S if given.is_whole else IDLE_S
    try:
        writer.write(given.data)
        while True:
            try:
                piece = await asyncio.wait_for(reader.read(65536), GIVE_UP_S if has_closed else wait_s)
            except TimeoutError:
                if has_closed:
                    raise
                if not is_due:  # where the machine was paused, what has come since is to be read first
                    is_due, wait_s = True, GRACE_S
                    continue
                writer.write_eof()
                has_closed = True
                continue
            if not piece:
                return answer
            answer += piece
    except (ConnectionError, OSError):
        return answer
    finally:
        writer.close()


async def fuzz(
    port: int, judge: Judge, schemas: Mapping[str, Any], numbers: range, args: argparse.Namespace
) -> None:
    """All inputs of `numbers`, `clients` at a time."""
    left = iter(numbers)
    began_s = time.monotonic()

    async def client() -> None:
        for number in left:
            given = made(args.seed, number, schemas)
            try:
                judge.judge(number, given, await exchange(port, given))
            except TimeoutError:
                judge.fail(f"input {number} ({given.kind}): no end of it; {given.data[-300:]!r}")
            done = number - numbers.start + 1
            if done % 10_000 == 0:
                rate = done / (time.monotonic() - began_s)
                print(f"{done:,} inputs, {rate:.0f} a second, {len(judge.failures)} failures", flush=True)

    await asyncio.gather(*(client() for _ in range(args.clients)))


async def run(server: Served, args: argparse.Namespace) -> bool:
    schemas = json.loads(server.get("/openapi.json"))
    judge = Judge()
    warm = range(args.first + args.inputs, args.first + args.inputs + min(400, args.inputs))
    await fuzz(server.port, judge, schemas, warm, args)
    await ask(server.port, GRAMMAR)  # the first one starts a worker, which stays
    canary = await ask(server.port, CANARY)
    base = await asyncio.to_thread(wait_until_idle, server, {}, 3.0)
    engine = server.engine()
    assert engine is not None and canary.status == 200
    front_bytes, engine_bytes = server.front.memory_info().rss, engine.memory_info().rss
    began_s = time.monotonic()
    await fuzz(server.port, judge, schemas, range(args.first, args.first + args.inputs), args)
    taken_s = time.monotonic() - began_s
    after = await ask(server.port, CANARY)
    left = await asyncio.to_thread(wait_until_idle, server, base, 20.0)
    now = server.engine()
    same = now is not None and now.pid == engine.pid
    grown = (
        server.front.memory_info().rss - front_bytes,
        engine.memory_info().rss - engine_bytes if same else 0,
    )
    left_over = {name: (base[name], left[name]) for name in base if left[name] > base[name]}
    is_canary_same = (json.loads(after.body)["choices"] if after.status == 200 else None) == json.loads(
        canary.body
    )["choices"]
    complaints = server.complaints()
    print(f"{args.inputs:,} inputs in {taken_s:.0f} s ({args.inputs / taken_s:.0f}/s), seed {args.seed}")
    print(dict(sorted(judge.seen.items())))
    print(f"failures: {len(judge.failures)}")
    print(f"same engine process: {same}; canary the same: {is_canary_same}")
    print(f"defects logged: {complaints[:3] or 0}")
    print(f"grown: front {grown[0] / 2**20:+.1f} MiB, engine {grown[1] / 2**20:+.1f} MiB")
    print(f"not given back (before, after): {left_over or 'nothing'}")
    return (
        not judge.failures and same and is_canary_same and not complaints and not left_over
        and max(grown) <= MAX_GROWN_BYTES
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=16)
    args = parser.parse_args(arguments)
    with served(config=CONFIG) as server:
        passes = asyncio.run(run(server, args))
    print("passes" if passes else "FAILS")
    return 0 if passes else 1


if __name__ == "__main__":
    sys.exit(main())
