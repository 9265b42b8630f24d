"""One engine in a process of its own, which is told what to run line by line (benchmarks/peers/protocol.py).

Two of them are resident at a time; the one that waits is stopped (SIGSTOP), so that no spinning thread and
no background task of it costs the other anything. Never imports a peer.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from penstock.errors import BackendError

ANSWER_TIMEOUT_S = 900.0
POLL_S = 0.05


class Driver:
    """Runs from the moment it is made; `ready()` waits until it is loaded. `watch`: poll its memory."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: Path, *, watch: bool) -> None:
        self._command = command
        self._log = log
        self._begin_s = time.perf_counter()
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=dict(env),
                start_new_session=True,
            )
        self._memory = PeakMemory(self._process.pid) if watch else None
        self._answers: queue.Queue[str] = queue.Queue()
        assert self._process.stdout is not None
        self._listener = threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True)
        self._listener.start()
        self.description: dict[str, Any] = {}  # Any: what the peer says of itself

    def __enter__(self) -> "Driver":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ready(self) -> "Driver":
        self.description = self._answer()
        return self

    def ask(self, line: str) -> dict[str, Any]:
        """One line in, one answer out; wakes the engine if it is stopped."""
        self.resume()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died: _answer says so
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        return self._answer()

    def stop(self) -> None:
        """Freeze the whole process group."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    @property
    def since_start_s(self) -> float:
        return time.perf_counter() - self._begin_s

    @property
    def peak_pss_bytes(self) -> int:
        """Of all its processes together, from its start until now; shared pages count once."""
        assert self._memory is not None, "memory is watched only where that was asked for: it costs time"
        return self._memory.peak_bytes

    def close(self) -> None:
        if self._memory is not None:
            self._memory.stop()
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._listener.join()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _listen(self, answers: TextIO) -> None:
        with answers:
            for line in answers:
                self._answers.put(line)
        self._answers.put("")

    def _answer(self) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=ANSWER_TIMEOUT_S)
        except queue.Empty:
            line = ""
        if not line:
            raise BackendError(
                f"{Path(self._command[0]).name} {Path(self._command[1]).name} gave no answer; "
                f"its row is not measured. See {self._log}."
            )
        answer: dict[str, Any] = json.loads(line)
        return answer


class PeakMemory:
    """Polls the proportional set size of a process group."""

    def __init__(self, group: int) -> None:
        self._group = group
        self.peak_bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(POLL_S):
            self.peak_bytes = max(self.peak_bytes, sum(map(_pss_bytes, _members(self._group))))


def _members(group: int) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == group:
                    found.append(int(folder.name))
    return found


def _pss_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    return 0
