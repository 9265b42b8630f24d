"""The front end dies in whatever way: the engine leaves, and leaves nothing behind. Garbage is dropped."""

import asyncio
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import zmq
from tests.fakes.served import PATIENT, ask, served, until

from penstock.engine.channel import Channel
from penstock.engine.wire import Abort, Stop

FRONT_END = """
import asyncio, sys
from tests.fakes.served import ask, engine_pid, served

async def run():
    async with served() as engine:
        print(engine_pid(engine), flush=True)
        await asyncio.gather(*(ask(engine, "def f(", max_tokens=1900) for _ in range(200)))
        await asyncio.sleep(3600)

asyncio.run(run())
"""


def folders(tmp_path):
    return list(tmp_path.glob("penstock-*"))


def num_descriptors():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def start_front_end(tmp_path):
    return subprocess.Popen(
        [sys.executable, "-c", FRONT_END],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        text=True,
    )


def wait_gone(pid, limit_s):
    end_s = time.monotonic() + limit_s
    while time.monotonic() < end_s:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_when_the_front_end_dies_the_engine_leaves_and_nothing_is_left(number, tmp_path):
    shared_memory = set(Path("/dev/shm").iterdir())
    with start_front_end(tmp_path) as front:
        pid = int(front.stdout.readline())
        time.sleep(0.3)  # amid the answers
        assert psutil.pid_exists(pid)
        front.send_signal(number)
        front.wait(10)

        assert wait_gone(pid, 5)
    assert folders(tmp_path) == []
    assert set(Path("/dev/shm").iterdir()) <= shared_memory


@pytest.mark.slow
def test_a_front_end_that_dies_while_the_engine_starts_leaves_nothing(tmp_path):
    for delay_s in (0.3, 0.5, 0.7, 0.9):
        with start_front_end(tmp_path) as front:
            time.sleep(delay_s)
            children = psutil.Process(front.pid).children(recursive=True)
            front.kill()
            front.wait(10)

            assert all(wait_gone(child.pid, 10) for child in children)
    for _ in range(100):  # an engine that was not yet an engine cleans up when it becomes one
        if not folders(tmp_path):
            break
        time.sleep(0.05)
    else:
        assert not any(pytest.fail(f"{folder} is left") for folder in folders(tmp_path))


@pytest.mark.slow
def test_a_stop_leaves_no_child_no_file_and_no_descriptor(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    async def once():
        async with served(PATIENT) as engine:
            await ask(engine, "def f(")
            assert folders(tmp_path) == []  # hidden as soon as the engine has connected

    children = set(psutil.Process().children())  # an engine of another test may have a worker for grammars
    asyncio.run(once())
    before = num_descriptors()
    for _ in range(3):
        asyncio.run(once())

    assert set(psutil.Process().children()) <= children
    assert num_descriptors() <= before


def test_the_socket_is_for_this_user_alone():
    channel = Channel.bind()
    try:
        assert channel.path.stat().st_mode & 0o777 == 0o600
        assert channel.path.parent.stat().st_mode & 0o777 == 0o700
    finally:
        channel.hide()
        channel.close()
    assert not channel.path.parent.exists()


def next_message(channel):
    for _ in range(100):
        if (message := channel.receive()) is not None:
            return message
        channel.wait(0.1)
    return None


class Bomb:
    def __reduce__(self):
        return (os.abort, ())


def test_pickles_and_garbage_on_the_socket_are_counted_and_dropped():
    found = []
    sys.addaudithook(lambda event, _: found.append(event) if event.startswith("pickle.") else None)
    ours = Channel.bind()
    theirs = Channel.connect(ours.path)
    try:
        garbage = [
            pickle.dumps(Bomb()),
            b"",
            b"\x00" * 1000,
            b"\x95\x07",
            os.urandom(300),
            b"\x93\x08\xc0\xc0",
        ]
        found.clear()
        for frame in garbage:
            theirs._socket.send(frame)
        theirs._socket.send_multipart([b"one", b"two"])
        theirs.send(Abort(("3",)))

        assert next_message(ours) == Abort(("3",))
        assert ours.receive() is None
        assert ours.num_malformed == len(garbage) + 2
        assert found == []
    finally:
        ours.hide()
        for channel in (theirs, ours):
            channel.close()


def test_bytes_that_are_no_zeromq_at_all_do_not_disturb_the_pair():
    ours = Channel.bind()
    theirs = Channel.connect(ours.path)
    theirs.send(Stop())
    assert ours.wait(5)
    strangers = []
    for data in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), pickle.dumps(Bomb()), b"\xff" + b"\x00" * 63):
        stranger = socket.socket(socket.AF_UNIX)
        stranger.connect(str(ours.path))
        stranger.sendall(data)
        strangers.append(stranger)
    second = zmq.Context.instance().socket(zmq.PAIR)
    second.setsockopt(zmq.LINGER, 0)
    second.connect(f"ipc://{ours.path}")
    second.send(b"I am the engine")
    time.sleep(0.2)
    try:
        theirs.send(Abort(("1",)))
        assert next_message(ours) == Stop()
        assert next_message(ours) == Abort(("1",))
        assert ours.receive() is None  # who came second was not heard
    finally:
        ours.hide()
        second.close()
        for one in (*strangers, theirs, ours):
            one.close()


@pytest.mark.slow
def test_frames_that_no_front_end_sends_do_not_end_the_engine():
    async def run():
        async with served(PATIENT) as engine:
            running = engine._supervisor.engine
            for frame in (b"garbage", pickle.dumps(Bomb()), b"\x92\x05\xa1x", b"\x91\x07"):
                running.channel._socket.send(frame)
            await ask(engine, "def f(")
            await until(lambda: running.watch.beat.num_malformed >= 4)
            assert running.process.poll() is None
            await until(lambda: engine.metrics.malformed._value.get() >= 4)

    asyncio.run(run())
