"""Hundreds of clients that do nothing good: they read nothing, or send a byte now and then."""

import contextlib
import gc
import itertools
import resource
import select
import socket
import statistics
import threading
import time

import psutil
import pytest
from tests.api.wire import CHAT, connect, exchange, head, post, status, wait_until

from penstock.engine.serving import Limits

pytestmark = pytest.mark.slow
STREAM = post("/v1/chat/completions", {**CHAT, "stream": True})
LIVE = head("GET", "/live")


@pytest.fixture
def many_files():
    """Both ends of every connection are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 5000:
        pytest.skip(f"{hard} files may be open here, and two thousand connections need 5,000")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 5000), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def gaps_s(port, count):
    """Of a polite reader: seconds between the pieces of its stream, sorted."""
    with connect(port) as wire:
        wire.sendall(STREAM)
        times = []
        while len(times) <= count:
            assert wire.recv(1 << 16)
            times.append(time.perf_counter())
    return sorted(b - a for a, b in itertools.pairwise(times[2:]))


def test_five_hundred_clients_that_read_nothing_cost_little_and_are_let_go(serve, scripted, many_files):
    engine = scripted(
        ["x" * 1000] * 10_000, gap_s=0.25, limits=Limits(idle_write_s=15.0, queued_requests=2000)
    )
    server = serve(engine, log_requests=False)
    server.server._bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    alone_s = statistics.median(gaps_s(server.port, 20))
    gc.collect()
    before = psutil.Process().memory_info().rss
    wires = []
    for _ in range(500):
        wire = socket.socket()
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.settimeout(30)
        wire.connect(("127.0.0.1", server.port))
        wire.sendall(STREAM)
        wires.append(wire)
    wait_until(lambda: len(engine.calls) == 501, 60)  # some may have been let go by now
    beside_s = statistics.median(gaps_s(server.port, 20))
    gc.collect()
    grown = psutil.Process().memory_info().rss - before

    assert grown <= 40 << 20, f"{grown / 2**20:.1f} MiB"
    assert beside_s <= 1.1 * alone_s + 0.05, f"{alone_s:.3f} s alone, {beside_s:.3f} s beside them"
    wait_until(lambda: engine.num_open == 0 and not server.server._state.connections, 90)
    for wire in wires:
        wire.close()


def test_two_thousand_slow_heads_are_closed_in_time_and_hold_up_nobody(serve, scripted, many_files):
    limits = Limits(header_s=4.0)
    server = serve(scripted(), limits=limits, log_requests=False)

    def asked_s():
        began_s = time.perf_counter()
        assert status(exchange(server.port, LIVE)) == 200
        return time.perf_counter() - began_s

    alone_s = statistics.median(asked_s() for _ in range(50))
    wires = {}
    for _ in range(2000):
        wire = connect(server.port)
        wire.sendall(b"POST /v1/completions HTTP/1.1\r\nx-slow: ")
        wires[wire.fileno()] = (wire, time.monotonic())
    done = threading.Event()
    beside: list[float] = []

    def probe():
        while not done.is_set():
            beside.append(asked_s())
            time.sleep(0.02)

    thread = threading.Thread(target=probe)
    thread.start()
    poll = select.poll()
    for fd in wires:
        poll.register(fd, select.POLLIN | select.POLLHUP)
    lived_s, next_byte_s, end_s = [], time.monotonic(), time.monotonic() + 60
    while wires and time.monotonic() < end_s:
        for fd, _ in poll.poll(100):
            wire, begun_s = wires.pop(fd)
            poll.unregister(fd)
            lived_s.append(time.monotonic() - begun_s)
            wire.close()
        if time.monotonic() > next_byte_s:
            next_byte_s += 1.0
            for wire, _ in wires.values():
                with contextlib.suppress(OSError):  # it is being closed
                    wire.send(b"a")
    done.set()
    thread.join()

    assert not wires, f"{len(wires)} are still open"
    assert limits.header_s - 0.5 <= min(lived_s)
    assert max(lived_s) <= limits.header_s + 20  # this client needs seconds to look at them all
    beside_s = statistics.median(beside)
    assert beside_s <= 1.1 * alone_s + 0.05, f"{alone_s:.4f} s alone, {beside_s:.4f} s beside them"
    wait_until(lambda: not server.server._state.connections)
