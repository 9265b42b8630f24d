"""Ctrl-C between steps, never within one: no table is left half written when KeyboardInterrupt rises."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class DeferredInterrupt:
    """`with` this, SIGINT is noted and delivered on leaving. Does nothing off the main thread.

    A second SIGINT is delivered at once: whoever presses twice wants out. A loop that defers in every round
    keeps one, and its handler `installed` throughout, since to change handlers takes longer than to defer;
    between two rounds that handler delivers at once.
    """

    def __init__(self) -> None:
        self._handler: Any = None  # Any: what `signal` gives and takes: callable, or it is not ours to defer
        self._noted: tuple[int, FrameType | None] | None = None
        self._is_deferring = False
        self._is_kept = False

    def __enter__(self) -> "DeferredInterrupt":
        self._noted = None
        self._is_deferring = True
        if not self._is_kept:
            self._install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        handler = self._handler
        if not self._is_kept:
            self._remove()
        self._is_deferring = False
        if self._noted is not None and kind is None and callable(handler):
            handler(*self._noted)

    @contextmanager
    def installed(self) -> Iterator[None]:
        self._install()
        self._is_kept = True
        try:
            yield
        finally:
            self._is_kept = False
            self._remove()

    def _install(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        handler = signal.getsignal(signal.SIGINT)
        if callable(handler):
            self._handler = handler
            signal.signal(signal.SIGINT, self._note)

    def _remove(self) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            self._handler = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self._is_deferring or self._noted is not None:
            self._handler(number, frame)
        self._noted = (number, frame)
