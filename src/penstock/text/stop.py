"""Stop strings: found across token and character boundaries; nothing of one leaks into the stream."""

from collections.abc import Sequence


class StopStrings:
    """Feeds on text pieces, gives back what is safe to emit: held back is the longest end that may begin a stop.

    The earliest occurrence wins; of several at one place, the first in `stops`.

    >>> stop = StopStrings(["END"])
    >>> stop.feed("abcE"), stop.feed("Nd"), stop.feed(" EN"), stop.feed("D tail")
    (('abc', None), ('ENd', None), (' ', None), ('', 'END'))
    """

    __slots__ = ("_held", "_include", "_stops")

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self._stops = tuple(stops)
        self._include = include
        self._held = ""

    def feed(self, text: str) -> tuple[str, str | None]:
        """(text to emit now, the stop string that was hit or None). After a hit, feed no more."""
        if not self._stops:
            return text, None
        self._held += text
        at, hit = min(
            ((found, rank) for rank, stop in enumerate(self._stops) if (found := self._held.find(stop)) >= 0),
            default=(-1, -1),
        )
        if at >= 0:
            stop = self._stops[hit]
            emit = self._held[: at + len(stop)] if self._include else self._held[:at]
            self._held = ""
            return emit, stop
        keep = self._num_held()
        emit = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return emit, None

    def flush(self) -> str:
        """What was held back, when the text ends without a stop."""
        held, self._held = self._held, ""
        return held

    def _num_held(self) -> int:
        """Length of the longest end of the held text that begins some stop string."""
        longest = max(len(stop) for stop in self._stops) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            end = self._held[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
