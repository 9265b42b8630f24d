"""The server in a real cgroup whose memory is taken from it: it sheds, it aborts the youngest, it is killed.

The kernel is made to choose the engine by its oom_score_adj. Skipped aloud where no cgroup can be made.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from benchmarks.served import served
from tests.api.conftest import Started

from penstock.engine.supervisor import count_oom_kills

LIMIT = 768 << 20
MOUNT = Path("/sys/fs/cgroup")
TEXT = {"model": "penstock-tiny", "prompt": "def f(", "temperature": 0, "ignore_eos": True}
# Holds as many bytes as the lines of its standard input say, one after the other.
BALLAST = """
import sys
held = bytearray(0)
for line in sys.stdin:
    held = None
    held = bytearray(int(line))
    held[::4096] = bytes([1]) * len(range(0, len(held), 4096))
    print(len(held), flush=True)
"""


class Cgroup:
    """A child of this process's own cgroup, in whichever layout it has a limit of memory."""

    def __init__(self) -> None:
        lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
        paths = {names: path.lstrip("/") for _, names, path in lines}
        old = next((names for names in paths if "memory" in names.split(",")), None)
        self.home = MOUNT / "memory" / paths[old] if old else MOUNT / paths[""]
        self.folder = self.home / f"penstock-test-{os.getpid()}"
        self.folder.mkdir()
        try:
            limit = self.folder / ("memory.limit_in_bytes" if old else "memory.max")
            self.used = self.folder / ("memory.usage_in_bytes" if old else "memory.current")
            self._cached = "total_inactive_file" if old else "inactive_file"
            self._own = "total_rss" if old else "anon"
            limit.write_text(str(LIMIT))
        except OSError:
            self.folder.rmdir()
            raise

    def _stat(self, name: str) -> int:
        lines = (self.folder / "memory.stat").read_text().splitlines()
        return int(dict(line.split() for line in lines)[name])

    def share(self) -> float:
        return (int(self.used.read_text()) - self._stat(self._cached)) / LIMIT

    def own_bytes(self) -> int:
        """What the kernel cannot take back: no cached files."""
        return self._stat(self._own)

    @contextlib.contextmanager
    def joined(self):
        """What is started meanwhile is in it."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))
        try:
            yield
        finally:
            (self.home / "cgroup.procs").write_text(str(os.getpid()))

    def remove(self) -> None:
        for _ in range(100):
            with contextlib.suppress(OSError):
                self.folder.rmdir()
                return
            time.sleep(0.05)


class Ballast:
    def __init__(self, cgroup: Cgroup) -> None:
        self._cgroup = cgroup
        self.process = subprocess.Popen(
            [sys.executable, "-c", BALLAST], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._held = 0
        self.hold(0)

    def hold(self, num_bytes: int) -> None:
        self._held = num_bytes
        self.process.stdin.write(f"{num_bytes}\n")
        self.process.stdin.flush()
        assert int(self.process.stdout.readline()) == num_bytes, "the kernel has killed the ballast"

    def close(self) -> None:
        self.process.kill()
        with self.process:  # waits, and closes its pipes
            pass

    def fill(self, share: float) -> None:
        """Until so much of the cgroup's memory is in use."""
        self.hold(0)
        self.hold(max(0, int((share - self._cgroup.share()) * LIMIT)))


class Asked:
    """A stream, read in a thread: its text, and its last word."""

    def __init__(self, server: Started, max_tokens: int) -> None:
        self.text, self.error, self.is_done = "", None, False
        self._body = {**TEXT, "max_tokens": max_tokens, "stream": True}
        self._server = server
        self.thread = threading.Thread(target=self._read)
        self.thread.start()
        while not self.text and self.thread.is_alive():
            time.sleep(0.01)

    def _read(self) -> None:
        with self._server._client.stream("POST", "/v1/completions", json=self._body) as answer:
            for line in answer.iter_lines():
                data = line.removeprefix("data: ")
                if data == "[DONE]":
                    self.is_done = True
                elif data:
                    event = json.loads(data)
                    self.error = event.get("error", self.error)
                    self.text += "".join(choice["text"] for choice in event.get("choices", ()))


@pytest.fixture
def cgroup():
    try:
        made = Cgroup()
    except OSError as error:
        pytest.skip(f"NOT TESTED: no cgroup can be made here ({error.strerror}: {error.filename})")
    yield made
    made.remove()


def until(holds, limit_s=20.0):
    end_s = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_server_without_memory_sheds_then_aborts_the_youngest_and_outlives_the_kernels_kill(cgroup):
    with contextlib.ExitStack() as stack:
        with cgroup.joined():
            server = stack.enter_context(served(config="[engine]\nmemory_bytes = 16777216\nseed = 1\n"))
            started = stack.enter_context(contextlib.closing(Started(server)))
            ballast = Ballast(cgroup)
        stack.callback(ballast.close)
        want = started.ask({**TEXT, "max_tokens": 1500}).json()["choices"][0]["text"]

        ballast.fill(0.92)
        until(lambda: started.ask({**TEXT, "max_tokens": 1}).status_code == 503)
        refused = started.ask({**TEXT, "max_tokens": 1})
        assert refused.json()["error"]["code"] == "engine_overloaded"
        assert int(refused.headers["retry-after"]) >= 1
        ballast.hold(0)
        until(lambda: started.ask({**TEXT, "max_tokens": 1}).status_code == 200)

        old, young = Asked(started, 1500), Asked(started, 1500)
        ballast.fill(0.97)
        until(lambda: young.error is not None)
        ballast.hold(0)
        old.thread.join(60)
        young.thread.join(60)
        assert (old.text, old.is_done, old.error) == (want, True, None)
        assert not young.is_done
        assert young.error["code"] == "engine_overloaded"

        until(server.is_ready)
        kills, engine = count_oom_kills(), server.engine()
        Path(f"/proc/{engine.pid}/oom_score_adj").write_text("1000")
        streams = [Asked(started, 1500) for _ in range(2)]
        memory = engine.memory_info()
        room = LIMIT - cgroup.own_bytes()
        ballast.hold(room + (memory.rss - memory.shared) // 2)  # it fits, once the engine is gone
        assert count_oom_kills() == kills + 1
        assert not engine.is_running()
        ballast.hold(0)
        for stream in streams:
            stream.thread.join(60)
            if stream.error is None:
                assert (stream.text, stream.is_done) == (want, True)
            else:  # the guard was quicker than the kernel
                assert stream.error["code"] == "engine_overloaded"
                assert want.startswith(stream.text)
        assert server.engine().pid != engine.pid
        lost = [line for line in server.log.read_text().splitlines() if '"engine_lost"' in line]
        assert len(lost) == 1
        assert "SIGKILL" in lost[0]
        assert started.ask({**TEXT, "max_tokens": 1}).status_code == 200
