"""Ctrl-C as a person presses it: in a terminal of its own, through the terminal's line discipline."""

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest
from tests.unit.cli.conftest import environment, without_build_note

# Makes the terminal on descriptor 0 the process's own, so that Ctrl-C reaches it as SIGINT.
OWN_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);os.execv(sys.argv[1], sys.argv[1:])"
)
CTRL_C, CTRL_D = b"\x03", b"\x04"
SLOWLY = {"PENSTOCK_ISA": "scalar"}  # seconds for an answer: time enough to press a key in the middle


class Terminal:
    """A command behind a pseudo-terminal; `text` is all that it has shown so far."""

    def __init__(self, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWN_TERMINAL, sys.executable, "-m", "penstock.cli.main", *arguments],
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env=environment({"TERM": "dumb", **SLOWLY}),
        )  # fmt: skip
        os.close(slave)
        self.text = ""

    def press(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def wait_for(self, words: str, timeout_s: float = 60) -> str:
        """What is shown until `words` (a pattern) has come. Fails after `timeout_s`."""
        until_s = time.monotonic() + timeout_s
        fresh = ""
        while not re.search(words, fresh):
            assert time.monotonic() < until_s, f"{words!r} did not come; shown: {self.text!r}"
            if select.select([self._master], [], [], 0.1)[0]:
                piece = os.read(self._master, 65536).decode(errors="replace")
                fresh += piece
                self.text += piece
        return fresh

    def leave(self, keys: bytes = b"", timeout_s: float = 60) -> int:
        """The exit code, once the command has ended. `keys` are pressed until then, once a second."""
        until_s = time.monotonic() + timeout_s
        next_s = 0.0
        while self.process.poll() is None:
            if keys and time.monotonic() > next_s:
                self.press(keys)
                next_s = time.monotonic() + 1
            assert time.monotonic() < until_s, f"the command did not end; shown: {self.text!r}"
            if select.select([self._master], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):  # the other end is closed
                    self.text += os.read(self._master, 65536).decode(errors="replace")
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)


@pytest.fixture
def talk():
    terminal = Terminal(
        "run", "penstock-tiny", "--temperature", "0", "--ignore-eos", "--max-tokens", "300", "--stats"
    )
    yield terminal
    terminal.close()


def test_ctrl_c_stops_an_answer_and_keeps_the_conversation(talk):
    talk.wait_for("Ctrl-C stops an answer.*\n> ")
    talk.press(b"hello\n")
    talk.wait_for("\n..")
    talk.press(CTRL_C)
    talk.wait_for(r"\[stopped\]\s+> ")
    talk.press(b"again\n")
    shown = talk.wait_for(r"(\d+) prompt tokens .*\n> ")
    num_prompt_tokens = int(re.search(r"(\d+) prompt tokens", shown)[1])
    talk.press(CTRL_D)

    assert talk.leave() == 0
    assert "Traceback" not in talk.text
    assert num_prompt_tokens > 12  # both messages alone, with their roles, are fewer
    assert int(re.search(r"\((\d+) cached", shown)[1]) % 64 == 0


def test_ctrl_c_at_the_prompt_leaves(talk):
    talk.wait_for("Ctrl-C stops an answer.*\n> ")

    # more than once: readline misses a signal that comes between its prompt and its waiting for keys
    assert talk.leave(CTRL_C) == 130
    assert "Traceback" not in talk.text


def test_ctrl_c_while_one_prompt_is_continued_leaves():
    terminal = Terminal("run", "penstock-tiny", "-p", "def f(", "--ignore-eos")
    terminal.wait_for(r"def f\(.+")
    terminal.press(CTRL_C)
    code = terminal.leave()
    terminal.close()

    assert code == 130
    assert "Traceback" not in terminal.text


def test_ctrl_c_ends_a_pipe_of_messages():
    command = [
        sys.executable,
        "-m",
        "penstock.cli.main",
        "run",
        "penstock-tiny",
        "--ignore-eos",
        "--complete",
    ]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(SLOWLY),
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"def f(\nclass A:\n")
    process.stdin.flush()
    process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)

    assert process.returncode == 130
    assert without_build_note(error.decode()).strip() == ""
