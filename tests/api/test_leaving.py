"""Clients that leave, readers that stall, servers that drain: nothing runs for nobody or looks whole."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import psutil
import pytest
from benchmarks.client import ask
from benchmarks.served import served
from tests.api.wire import (
    CHAT,
    TEXT,
    connect,
    events_of,
    head,
    post,
    read_all,
    read_answer,
    reset,
    status,
    wait_until,
)

from penstock.engine.serving import EngineState, Limits

STREAM = post("/v1/chat/completions", {**CHAT, "stream": True})
WHOLE = post("/v1/chat/completions", CHAT)
STAGES = {  # name -> (bytes sent, whether an answer has begun when the client leaves)
    "nothing sent": (b"", False),
    "in the head": (STREAM[:40], False),
    "in the body": (STREAM[:-10], False),
    "streaming": (STREAM, True),
    "waiting for the whole": (WHOLE, False),
    "with one more behind it": (STREAM + WHOLE, True),
}


@pytest.mark.parametrize("how", ["close", "reset", "half-close"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_client_that_leaves_takes_its_request_with_it(serve, scripted, stage, how):
    data, is_answering = STAGES[stage]
    engine = scripted(["Hello"], hangs=True)
    server = serve(engine)
    for _ in range(5):
        wire = connect(server.port)
        wire.sendall(data)
        if is_answering:
            assert status(wire.recv(4096)) == 200
        elif data == WHOLE:
            wait_until(lambda: engine.num_open == 1)
        if how == "reset":
            reset(wire)
        elif how == "half-close":
            wire.shutdown(socket.SHUT_WR)
        else:
            wire.close()
        wait_until(lambda: engine.num_open == 0 and engine.num_tickets == 0)
        wire.close()
    wait_until(lambda: not server.server._state.connections)
    wait_until(lambda: not server.server._state.tasks)
    with server.client() as client:
        assert client.get("/live").status_code == 200


def test_a_reader_that_stalls_is_let_go_and_costs_little(serve, scripted):
    engine = scripted(["x" * 1000] * 100_000, limits=Limits(idle_write_s=0.5))
    server = serve(engine)
    wire = socket.socket()
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    wire.connect(("127.0.0.1", server.port))
    wire.sendall(STREAM)
    wait_until(lambda: engine.num_open == 1)
    time.sleep(0.3)
    (connection,) = server.server._state.connections
    unsent = connection.transport.get_write_buffer_size()
    wait_until(lambda: engine.num_open == 0 and not server.server._state.connections)

    assert unsent < 128 << 10
    wire.close()


def test_streams_end_in_exactly_one_way(serve, scripted):
    from penstock.errors import EngineRestartingError

    for engine, is_whole in (
        (scripted(), True),
        (scripted(["a", EngineRestartingError("it died; again.")]), False),
    ):
        with serve(engine).client() as client:
            events = events_of(client.post("/v1/chat/completions", json={**CHAT, "stream": True}).text)
        ends = [e for e in events if e != "[DONE]" and e.get("choices") and e["choices"][0]["finish_reason"]]
        assert (events[-1] == "[DONE]", len(ends), "error" in events[-1]) == (
            is_whole,
            is_whole,
            not is_whole,
        )


@pytest.mark.slow
def test_a_stream_whose_turn_does_not_come_ends_with_one_error():
    """Its 200 was sent when it was queued: that it never began is told within the stream."""
    config = "[engine]\nmax_requests = 1\n[limits]\nqueue_wait_s = 0.5\n"
    whole = post("/v1/completions", {**TEXT, "max_tokens": 1000, "ignore_eos": True})
    stream = post("/v1/completions", {**TEXT, "stream": True})

    async def crowd(server):
        before = [asyncio.create_task(ask(server.port, whole)) for _ in range(5)]  # what the engine takes
        while server.gauges()["penstock_requests_running"] < len(before):
            await asyncio.sleep(0.01)
        replies = await asyncio.gather(*(ask(server.port, data) for data in (stream, whole, stream)))
        for task in before:
            task.cancel()
        await asyncio.gather(*before, return_exceptions=True)
        return replies

    with served(config=config) as server:
        first, second, third = asyncio.run(crowd(server))
    assert (first.status, second.status, third.status) == (200, 504, 200)
    for reply in (first, third):
        (event,) = reply.events
        assert event["error"]["code"] == "deadline_exceeded"
        assert not reply.is_whole
        assert b"[DONE]" not in reply.body


def test_what_is_refused_is_refused_before_the_200(serve, scripted):
    from penstock.errors import OverloadedError

    with serve(scripted(refuses=OverloadedError("full; come back.", retry_after_s=9))).client() as client:
        answer = client.post("/v1/completions", json={**TEXT, "stream": True})
    assert (answer.status_code, answer.headers["retry-after"], answer.headers["x-should-retry"]) == (
        503,
        "9",
        "true",
    )


def test_draining_tells_probes_first_and_lets_answers_end(serve, scripted):
    engine = scripted(["a"] * 20, gap_s=0.05)
    server = serve(engine)
    with connect(server.port) as wire, server.client() as client:
        wire.sendall(STREAM)
        assert status(wire.recv(4096)) == 200
        assert client.get("/ready").status_code == 200
        begun_s = time.monotonic()
        server.loop.call_soon_threadsafe(server.server.signalled)
        wait_until(lambda: client.get("/ready").status_code == 503, 1)
        assert time.monotonic() - begun_s < 0.3
        assert client.get("/live").status_code == 200
        assert client.post("/v1/completions", json=TEXT).json()["error"]["code"] == "shutting_down"
        assert b"[DONE]" in read_all(wire)
    server.thread.join(10)
    assert server.codes == [0]
    assert engine.num_open == 0
    assert engine.num_aborted == 0


def test_a_second_signal_ends_it_at_once(serve, scripted):
    server = serve(scripted(["a"], hangs=True))
    with connect(server.port) as wire:
        wire.sendall(STREAM)
        wire.recv(4096)
        begun_s = time.monotonic()
        server.stop(at_once=True)
        assert b"[DONE]" not in read_all(wire)
    assert time.monotonic() - begun_s < 3


def test_an_engine_that_gives_up_ends_the_server_with_a_code(serve, scripted):
    from penstock.errors import EngineError

    engine = scripted()
    server = serve(engine)
    wait_until(lambda: getattr(engine, "failure", None) is not None)
    server.loop.call_soon_threadsafe(engine.failure.set_result, EngineError("it died five times."))
    server.thread.join(10)

    assert server.codes == [70]


def test_probes_follow_the_state(serve, scripted):
    engine = scripted()
    with serve(engine).client() as client:
        for state, ready, startup in (
            (EngineState.STARTING, 503, 503),
            (EngineState.READY, 200, 200),
            (EngineState.ENGINE_DOWN, 503, 200),
            (EngineState.STOPPED, 503, 200),
        ):
            engine.state = state
            assert client.get("/live").status_code == 200
            assert client.get("/ready").status_code == client.get("/health").status_code == ready
            assert client.get("/startup").status_code == startup
            assert client.get("/health").json()["status"] == state
        assert client.get("/health?deep=1").json()["deep"] is True


@pytest.fixture
def command(tmp_path):
    """The command itself, with its engine process, on a free port; (process, url)."""
    import contextlib

    with contextlib.ExitStack() as stack:

        def start(*flags: str, **environment: str) -> tuple[subprocess.Popen[str], str]:
            process = subprocess.Popen(
                [sys.executable, "-m", "penstock.cli.main", "serve", "--port", "0", "--threads", "1", *flags],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment},
            )  # fmt: skip
            stack.callback(process.wait)
            stack.callback(process.kill)
            stack.callback(process.stderr.close)
            stack.callback(process.stdout.close)
            line = process.stdout.readline()
            assert " serves " in line, line
            return process, re.search(r"http://\S+", line)[0]

        yield start


@pytest.mark.slow
def test_the_command_serves_drains_and_leaves_with_0(command, tmp_path):
    config = tmp_path / "serve.toml"
    config.write_text(
        'model = "penstock-tiny"\n[server]\nmodel_name = "tiny"\n[limits]\ndrain_s = 10\nn = 2\n'
    )
    process, url = command("--config", str(config), PENSTOCK_API_KEY="a-key-for-tests")
    key = {"authorization": "Bearer a-key-for-tests"}
    body = {**TEXT, "model": "tiny", "max_tokens": 400, "ignore_eos": True, "stream": True}
    assert (
        httpx.post(f"{url}/v1/completions", json={**body, "stream": False, "n": 3}, headers=key).status_code
        == 400
    )
    assert httpx.get(f"{url}/v1/models").status_code == 401
    got: list[str] = []

    def read() -> None:
        got.append(httpx.post(f"{url}/v1/completions", json=body, headers=key, timeout=60).text)

    reader = threading.Thread(target=read)
    reader.start()
    time.sleep(0.5)
    begun_s = time.monotonic()
    process.send_signal(signal.SIGHUP)
    process.terminate()
    reader.join(60)
    code = process.wait(30)

    assert code == 0
    assert got[0].endswith("data: [DONE]\n\n")
    assert time.monotonic() - begun_s < 12
    assert "a-key-for-tests" not in process.stderr.read()


@pytest.mark.slow
def test_standard_error_that_nobody_reads_stops_nothing(tmp_path):
    """The pipe is full from the beginning: logs of the start, of requests, of a restart and of the end."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    process = subprocess.Popen(
        [sys.executable, "-m", "penstock.cli.main", "serve", "--port", "0", "--threads", "1"],
        stdout=subprocess.PIPE, stderr=writer, text=True,
    )  # fmt: skip
    try:
        url = re.search(r"http://\S+", process.stdout.readline())[0]
        for _ in range(20):
            assert httpx.post(f"{url}/v1/completions", json=TEXT, timeout=60).status_code == 200
        (engine,) = psutil.Process(process.pid).children()
        engine.kill()
        assert httpx.post(f"{url}/v1/completions", json=TEXT, timeout=60).status_code == 200
        begun_s = time.monotonic()
        assert httpx.get(f"{url}/live", timeout=10).status_code == 200
        assert time.monotonic() - begun_s < 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        got = os.read(reader, 1 << 20)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        os.close(reader)
        os.close(writer)
    assert set(got) == {ord("x")}


@pytest.mark.slow
def test_the_command_survives_its_engine(command):
    process, url = command()
    body = {**TEXT, "max_tokens": 300, "ignore_eos": True, "temperature": 1.0}
    expected = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()["choices"][0]["text"]
    pieces: list[str] = []
    with httpx.stream("POST", f"{url}/v1/completions", json={**body, "stream": True}, timeout=60) as answer:
        text = ""
        for piece in answer.iter_text():
            text += piece
            if not pieces:
                pieces.append(piece)
                (engine,) = psutil.Process(process.pid).children()
                engine.kill()
    got = "".join(event["choices"][0]["text"] for event in events_of(text) if event != "[DONE]")

    assert got == expected
    assert events_of(text)[-1] == "[DONE]"


@pytest.mark.slow
def test_a_thousand_idle_streams_take_little(serve, scripted):
    engine = scripted(["a"], hangs=True, limits=Limits(queued_requests=5000))
    server = serve(engine)
    process = psutil.Process()
    wires = []

    def open_streams(count: int) -> int:
        for _ in range(count):
            wires.append(connect(server.port))
            wires[-1].sendall(STREAM)
        for wire in wires[-count:]:
            assert status(read_answer(wire)) == 200
        wait_until(lambda: engine.num_open == len(wires))
        return process.memory_info().rss

    base = open_streams(100)
    grown = open_streams(1000) - base
    for wire in wires:
        wire.close()
    wait_until(lambda: engine.num_open == 0)

    # this process holds the clients' ends too
    assert grown / 1000 <= 32 << 10, f"{grown / 1000:,.0f} bytes each"


def test_a_head_in_pieces_is_a_head(tiny):
    data = head("GET", "/live")
    with connect(tiny.port) as wire:
        for byte in data:
            wire.sendall(bytes([byte]))
        assert json.loads(read_answer(wire).partition(b"\r\n\r\n")[2]) == {"status": "live"}
