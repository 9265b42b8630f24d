"""Proof that a grammar compiles within its fuel, from a worker process that may be killed.

Called at admission, from any thread but an event loop's: a proof takes a few milliseconds, at most a second
and a half. What was proved or refused lately is remembered. The worker starts with the first grammar.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from penstock.errors import GrammarLimitError, InvalidRequestError
from penstock.request import GrammarSpec
from penstock.text.grammar_wire import LENGTH, Verdict, Vocabulary, frame_of

PROOF_LIMIT_S = 1.4
START_LIMIT_S = 30.0
MAX_REMEMBERED_BYTES = 4 << 20


class GrammarProver:
    """One worker for one vocabulary, which is asked for when the worker starts.

    Safe to call from several threads; their grammars go one by one.
    """

    def __init__(self, make_vocabulary: Callable[[], Vocabulary]) -> None:
        self._make_vocabulary = make_vocabulary
        self._worker: subprocess.Popen[bytes] | None = None
        self._verdicts: OrderedDict[GrammarSpec, Verdict] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()
        self._end: Callable[[], object] | None = None  # also called when nobody holds this any more

    def prove(self, spec: GrammarSpec, *, param: str = "structured_outputs") -> None:
        """Return for a grammar that compiles. InvalidRequestError or GrammarLimitError for another."""
        with self._lock:
            verdict = self._verdicts.get(spec)
            if verdict is None:
                verdict = self._ask(spec)
                self._remember(spec, verdict)
        if verdict.is_limit:
            raise GrammarLimitError(f"{param} {_rest(verdict.refusal)}", param=param)
        if verdict.refusal:
            raise InvalidRequestError(f"{param} {_rest(verdict.refusal)}", param=param)

    def close(self) -> None:
        """End the worker. A later proof starts another."""
        with self._lock:
            self._kill()

    def _ask(self, spec: GrammarSpec) -> Verdict:
        """The worker's verdict; one that takes too long, or the worker's life, is a limit."""
        worker = self._started()
        verdict = self._exchange(worker, frame_of(spec), PROOF_LIMIT_S)
        if verdict is None:
            self._kill()
            return Verdict("takes more than a second to compile", is_limit=True)
        return verdict

    def _started(self) -> subprocess.Popen[bytes]:
        if self._worker is not None and self._worker.poll() is None:
            return self._worker
        self._kill()
        vocabulary = self._make_vocabulary()
        self._worker = subprocess.Popen(
            [sys.executable, "-m", "penstock.text.grammar_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # its children are killed with it
        )
        self._end = weakref.finalize(self, _end, self._worker)
        if self._exchange(self._worker, frame_of(vocabulary), START_LIMIT_S) is None:
            self._kill()
            raise InvalidRequestError(
                "grammars cannot be checked here, since their worker does not start; leave the grammar out.",
                param="structured_outputs",
            )
        return self._worker

    @staticmethod
    def _exchange(worker: subprocess.Popen[bytes], frame: bytes, limit_s: float) -> Verdict | None:
        """Send a frame, wait for the verdict. None: it took too long, or the worker is gone."""
        assert worker.stdin is not None, "it was made with pipes"
        assert worker.stdout is not None, "it was made with pipes"
        deadline_s = time.monotonic() + limit_s
        try:
            worker.stdin.write(frame)
            worker.stdin.flush()
        except OSError:
            return None
        answer = b""
        while len(answer) < LENGTH.size or len(answer) < LENGTH.size + LENGTH.unpack_from(answer)[0]:
            left_s = deadline_s - time.monotonic()
            ready = select.select([worker.stdout], [], [], max(0.0, left_s))[0] if left_s > 0 else []
            piece = os.read(worker.stdout.fileno(), 65_536) if ready else b""
            if not piece:
                return None
            answer += piece
        return msgspec.msgpack.decode(answer[LENGTH.size :], type=Verdict)

    def _kill(self) -> None:
        self._worker = None
        if self._end is not None:
            self._end()

    def _remember(self, spec: GrammarSpec, verdict: Verdict) -> None:
        self._verdicts[spec] = verdict
        self._num_bytes += _size(spec, verdict)
        while self._num_bytes > MAX_REMEMBERED_BYTES:
            self._num_bytes -= _size(*self._verdicts.popitem(last=False))


def _end(worker: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(worker.pid, signal.SIGKILL)
    for stream in (worker.stdin, worker.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    worker.wait()


def _size(spec: GrammarSpec, verdict: Verdict) -> int:
    return 256 + 4 * len(spec.text) + len(verdict.refusal)


def _rest(refusal: str) -> str:
    """The worker calls every grammar `it`."""
    return refusal.removeprefix("it").lstrip(": ")
