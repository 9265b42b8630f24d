"""Ctrl-C between steps, never within one: no table is left half written when KeyboardInterrupt rises."""

import signal
import threading
from types import FrameType, TracebackType


class DeferredInterrupt:
    """`with` this, SIGINT is noted and delivered on leaving. Does nothing off the main thread.

    A second SIGINT is delivered at once: whoever presses twice wants out.
    """

    def __enter__(self) -> "DeferredInterrupt":
        self._noted: tuple[int, FrameType | None] | None = None
        self._is_active = threading.current_thread() is threading.main_thread()
        if self._is_active:
            self._handler = signal.getsignal(signal.SIGINT)
            self._is_active = callable(self._handler)
        if self._is_active:
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_active:
            return
        signal.signal(signal.SIGINT, self._handler)
        if self._noted is not None and kind is None and callable(self._handler):
            self._handler(*self._noted)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._noted is not None and callable(self._handler):
            self._handler(number, frame)
        self._noted = (number, frame)
