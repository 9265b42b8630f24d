"""EventLog: one line for each event whatever is in it, and nobody waits for whoever reads them."""

import io
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from penstock.event_log import MAX_FIELD_CHARS, MAX_WAITING, EventLog

EVIL = 'a\r\n{"event":"fake"}\x1b[31m\x00\u2028\u202e"'


@pytest.fixture
def full_pipe():
    """(reader, writer): a pipe that takes nothing more until somebody reads."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"x" * 4096)
    except BlockingIOError:
        pass
    os.set_blocking(writer, True)
    yield reader, writer
    for end in (reader, writer):
        os.close(end)


def drain(reader, until):
    """Read until `until` is in what has come."""
    got = b""
    while until not in got:
        got += os.read(reader, 65536)
    return got


def test_a_line_is_one_line_of_ascii_whatever_is_in_it():
    stream = io.StringIO()
    log = EventLog(stream)
    log.write("request", path=EVIL, status=200, at=["x\ny"])
    log.close()
    (line,) = stream.getvalue().splitlines()

    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line) | {"time": 0} == {
        "time": 0, "event": "request", "path": EVIL, "status": 200, "at": ["x\ny"],
    }  # fmt: skip


def test_a_long_value_is_cut():
    stream = io.StringIO()
    log = EventLog(stream)
    log.write("request", path="/" * 10_000)
    log.close()

    assert json.loads(stream.getvalue())["path"] == "/" * MAX_FIELD_CHARS


def test_a_line_that_cannot_be_written_is_counted_and_told_later():
    class FullDisk(io.StringIO):
        is_full = True

        def write(self, text: str) -> int:
            if self.is_full:
                raise OSError(28, "No space left on device")
            return super().write(text)

    disk = FullDisk()
    log = EventLog(disk)
    for _ in range(3):
        log.write("lost")
    log.close()
    assert log.num_dropped == 3
    disk.is_full = False
    log.write("kept")
    log.close()

    lines = [json.loads(line) for line in disk.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["log_lines_dropped", "kept"]
    assert lines[0]["count"] == 3


def test_a_stream_that_is_closed_harms_nobody():
    stream = io.StringIO()
    stream.close()
    log = EventLog(stream)
    log.write("lost")
    log.close()

    assert log.num_dropped == 1


def test_a_pipe_that_nobody_reads_holds_up_nobody_and_takes_bounded_memory(full_pipe):
    reader, writer = full_pipe
    log = EventLog(writer)
    slowest_s = 0.0
    for number in range(MAX_WAITING + 500):
        began_s = time.thread_time()
        log.write("request", number=number)
        slowest_s = max(slowest_s, time.thread_time() - began_s)
    assert slowest_s < 0.05
    assert 498 <= log.num_dropped <= 500  # the thread holds one, and may have made room for another
    began_s = time.monotonic()
    log.close(0.1)
    assert time.monotonic() - began_s < 2

    got = drain(reader, f'"number": {MAX_WAITING - 1}'.encode()).lstrip(b"x").splitlines()
    assert json.loads(got[0])["number"] == 0
    told = [json.loads(line) for line in got if b"log_lines_dropped" in line]
    assert sum(line["count"] for line in told) >= 498


def test_lines_of_several_threads_are_whole():
    stream = io.StringIO()
    log = EventLog(stream)

    def say(name):
        for number in range(200):
            log.write("request", name=name, number=number)

    threads = [threading.Thread(target=say, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]

    assert len(lines) == 800
    for name in "abcd":
        assert [line["number"] for line in lines if line["name"] == name] == list(range(200))


def test_a_process_can_end_while_its_log_is_stuck(full_pipe):
    _, writer = full_pipe
    code = "from penstock.event_log import EventLog; log = EventLog(); log.write('stuck'); log.close(0.1)"
    began_s = time.monotonic()
    assert subprocess.call([sys.executable, "-c", code], stderr=writer, timeout=30) == 0
    assert time.monotonic() - began_s < 20
