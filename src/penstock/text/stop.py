"""Stop strings: found across token and character boundaries; nothing of one leaks into the stream."""

from collections.abc import Sequence


class StopStrings:
    """Feeds on text pieces, gives back what is safe to emit; holds the longest end that may begin a stop.

    The stop that is complete first wins, however the text is cut into pieces; of several that are complete
    at once the longest. Stops are not empty.

    >>> stop = StopStrings(["END"])
    >>> stop.feed("abcE"), stop.feed("Nd"), stop.feed(" EN"), stop.feed("D tail")
    (('abc', None), ('ENd', None), (' ', None), ('', 'END'))
    """

    __slots__ = ("_held", "_include", "_stops")

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        assert all(stops), "an empty stop string would end every text; admission refuses it"
        self._stops = tuple(stops)
        self._include = include
        self._held = ""

    def feed(self, text: str) -> tuple[str, str | None]:
        """(text to emit now, the stop string that was hit or None). After a hit, feed no more."""
        if not self._stops:
            return text, None
        self._held += text
        hits = [(at + len(stop), at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if hits:
            end, begin, stop = min(hits)
            emit = self._held[: end if self._include else begin]
            self._held = ""
            return emit, stop
        keep = self._num_held()
        emit, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
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
