"""More than can be answered: the queue's bounds, and what the started server still answers."""

import asyncio
import json
import signal
import statistics
import time

import pytest
from benchmarks.client import ask, open_socket, post
from benchmarks.overload import main as overload
from benchmarks.served import served
from benchmarks.streams import main as streams

pytestmark = pytest.mark.slow
PROMPT = [40 + i % 400 for i in range(2000)]
HEALTH = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
QUEUE = """
[engine]
max_context = 2048
max_requests = 1
[limits]
queued_requests = 1000
queue_wait_s = 1000
heartbeat_s = 1000
hang_s = 10000
"""


def test_a_thousand_long_prompts_wait_within_64_mib_and_the_next_is_refused_at_once():
    body = {"model": "penstock-tiny", "prompt": PROMPT, "max_tokens": 8, "ignore_eos": True}
    streamed = post("/v1/completions", {**body, "stream": True})

    async def drive(server) -> None:
        async def num_waiting() -> int:
            return int(json.loads((await ask(server.port, HEALTH)).body)["num_queued"])

        for _ in range(3):
            assert (await ask(server.port, streamed)).is_whole
        engine = server.engine()
        engine.send_signal(signal.SIGSTOP)
        wires = []
        before = server.front.memory_info().rss
        refused_s: list[float] = []
        try:
            while not refused_s:
                for _ in range(20):
                    wires.append(await open_socket(server.port))
                    wires[-1][1].write(streamed)
                if len(wires) > 900:
                    await asyncio.sleep(0.2)
                    if await num_waiting() == 1000:
                        break
            assert 1000 < len(wires) <= 1060
            grown = server.front.memory_info().rss - before
            for _ in range(30):
                reply = await ask(server.port, post("/v1/completions", body))
                assert (reply.status, json.loads(reply.body)["error"]["code"]) == (503, "engine_overloaded")
                assert int(reply.headers["retry-after"]) >= 1
                refused_s.append(reply.total_s)
            assert grown <= 64 << 20, f"{grown / 2**20:.1f} MiB"
            assert statistics.median(refused_s) <= 0.020
        finally:
            for _, writer in wires:
                writer.transport.abort()
            engine.send_signal(signal.SIGCONT)
        end_s = time.monotonic() + 60
        while await num_waiting():
            assert time.monotonic() < end_s, "those who left still wait"
            await asyncio.sleep(0.1)
        assert (await ask(server.port, streamed)).is_whole
        print(f"{grown / 2**20:.1f} MiB for 1,000; refused in {1e3 * statistics.median(refused_s):.1f} ms")

    with served("--no-log-requests", config=QUEUE) as server:
        asyncio.run(drive(server))


def test_a_thousand_idle_streams_take_little_of_the_server_alone():
    assert streams(["--streams", "1000"]) == 0


def test_ten_times_too_much_costs_no_goodput(tmp_path):
    out = tmp_path / "overload.jsonl"
    overload(["--seconds", "4", "--rounds", "3", "--out", str(out)])
    loads = json.loads(out.read_text())["loads"]

    # the script's own bounds (90 %, 20 ms at p99) are for a machine that does nothing else
    for load in ("2.0", "10.0"):
        assert statistics.median(loads[load]["shares"]) >= 0.7
        assert loads[load]["refused_p50_s"] <= 0.1
        assert set(loads[load]["statuses"]) <= {"200", "503", "504"}
    assert loads["10.0"]["statuses"]["503"] > 0
