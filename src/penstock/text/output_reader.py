"""Reading letter by letter: what every format of `tool_calls` is written with.

A format is a generator that is sent one letter at a time, so what it does follows from the letters alone and
never from how they were cut into pieces. What it tried in vain is put back and read again as something else.
"""

import re
from collections.abc import Callable, Collection, Generator, Sequence
from functools import lru_cache
from typing import TypeVar

from penstock.text.json_scan import JsonScan
from penstock.text.output_events import (
    ContentDelta,
    OutputEvent,
    ReasoningDelta,
    ToolArgumentsDelta,
    ToolCallEnd,
    ToolCallStart,
)

T = TypeVar("T")
Reading = Generator[None, str, T]

SPACE = " \t\n\r"
END = ""  # what is read behind the last letter, as often as it is asked for
IN_STRING = re.compile(r'["\\\x00-\x1f]|\Z')  # what may change a JSON string's state
MAX_NAME_CHARS = 64
MAX_HEADER_CHARS = 256


@lru_cache(maxsize=64)
def _resting(marks: tuple[str, ...], *, holds_space: bool) -> re.Pattern[str]:
    """Finds where a text must be read letter by letter: a mark may begin, after space; or the piece ends."""
    if not marks:
        return re.compile(r"\Z")
    firsts = re.escape("".join(sorted({mark[0] for mark in marks})))
    space = f"(?:(?<![{SPACE}])[{SPACE}]++)?" if holds_space else ""
    return re.compile(rf"{space}(?:[{firsts}]|\Z)")


class OutputReader:
    """Letters in, events out. `tools`: the names that a call may have; other calls are text."""

    def __init__(self, tools: Collection[str]) -> None:
        self.tools = frozenset(tools)
        self._events: list[OutputEvent] = []
        self._put_back: list[str] = []  # the next letter is last
        self._tried: list[str] | None = None
        self._is_at_end = False
        self._num_calls = 0
        self._said: list[str] = []
        self._said_kind: type[ContentDelta] | type[ReasoningDelta] | None = None
        self._say_resting: Callable[[str], None] = self.content
        self.resting: re.Pattern[str] | None = None  # waits in a text: letters that it does not find are text

    # what comes in

    def letter(self) -> Reading[str]:
        if self._put_back:
            letter = self._put_back.pop()
        elif self._is_at_end:
            return END
        else:
            letter = yield
            if letter == END:
                self._is_at_end = True
                return END
        if self._tried is not None:
            self._tried.append(letter)
        return letter

    def put_back(self, text: str) -> None:
        self._put_back += reversed(text)
        if self._tried is not None and text:
            del self._tried[-len(text) :]

    def attempt(self) -> None:
        """From here on, `give_up` puts back what is read."""
        self._tried = []

    def give_up(self) -> None:
        tried, self._tried = self._tried or [], None
        self.put_back("".join(tried))

    def settle(self) -> None:
        """What was read since `attempt` has been understood."""
        self._tried = None

    def space(self) -> Reading[str]:
        """The first letter behind space."""
        while True:
            letter = yield from self.letter()
            if letter == END or letter not in SPACE:
                return letter

    def mark(self, marks: Sequence[str], first: str) -> Reading[str | None]:
        """The one of `marks` that begins with `first` and follows, or None: then only `first` is read."""
        text = first
        while True:
            if text in marks:
                return text
            letter = END
            if any(mark.startswith(text) for mark in marks):
                letter = yield from self.letter()
            if letter == END:
                self.put_back(text[1:])
                return None
            text += letter

    def expect(self, text: str) -> Reading[bool]:
        """Whether exactly `text` follows space."""
        first = yield from self.space()
        if first == END or first != text[0]:
            self.put_back(first)
            return False
        found = yield from self.mark((text,), first)
        if found is None:
            self.put_back(first)
        return found is not None

    def text(
        self, say: Callable[[str], None], marks: tuple[str, ...], *, skips_space: bool, holds_space: bool
    ) -> Reading[tuple[str | None, str]]:
        """Say text until one of `marks` comes: (the mark or None at the end, space held back before it).

        `skips_space`: space at the beginning is dropped, since a mark came before it. `holds_space`: space
        before a mark is not said.
        """
        resting = _resting(marks, holds_space=holds_space)
        if skips_space:
            self.put_back((yield from self.space()))
        held = ""
        while True:
            self.resting, self._say_resting = None if held else resting, say
            letter = yield from self.letter()
            self.resting = None
            if letter == END:
                say(held)
                return None, ""
            if holds_space and letter in SPACE and marks:
                held += letter
                continue
            found = yield from self.mark(marks, letter)
            if found is not None:
                return found, held
            say(held + letter)
            held = ""

    def until(self, stops: str, limit: int) -> Reading[str]:
        """Letters before one of `stops`, which is put back; cut off at `limit`."""
        text = ""
        while len(text) < limit:
            letter = yield from self.letter()
            if letter == END or letter in stops:
                self.put_back(letter)
                break
            text += letter
        return text

    # what goes out

    def content(self, text: str) -> None:
        self._say(ContentDelta, text)

    def reasoning(self, text: str) -> None:
        self._say(ReasoningDelta, text)

    def say_resting(self, text: str) -> None:
        """Text in which `resting` finds nothing, all at once."""
        self._say_resting(text)

    def _say(self, kind: type[ContentDelta] | type[ReasoningDelta] | None, text: str) -> None:
        """More text of a kind; None: of the arguments of the latest call."""
        if kind is not self._said_kind:
            self._flush()
            self._said_kind = kind
        if text:
            self._said.append(text)

    def _say_arguments(self, text: str) -> None:
        self._say(None, text)

    def _flush(self) -> None:
        text = "".join(self._said)
        self._said.clear()
        if text and self._said_kind is None:
            self._events.append(ToolArgumentsDelta(self._num_calls - 1, text))
        elif text and self._said_kind is not None:
            self._events.append(self._said_kind(text))

    def taken(self) -> list[OutputEvent]:
        """The events since last asked."""
        self._flush()
        events, self._events = self._events, []
        return events

    def call(self, name: str, arguments: str = "") -> Reading[bool]:
        """One call whose name is known; its arguments follow, unless they have been read. True: it is whole.

        What was read before is settled. Where the arguments turn out to be no JSON object, the rest is text.
        """
        self.settle()
        self._flush()
        index = self._num_calls
        self._num_calls += 1
        self._events.append(ToolCallStart(index, name))
        is_whole = True
        if arguments:
            self._say(None, arguments)
        else:
            is_whole = yield from self._arguments()
        self._flush()
        self._events.append(ToolCallEnd(index, is_whole))
        return is_whole

    def _arguments(self) -> Reading[bool]:
        scan = JsonScan()
        while True:
            self.resting = IN_STRING if scan.is_in_string else None
            self._say_resting = self._say_arguments
            letter = yield from self.letter()
            self.resting = None
            verdict = "bad" if letter == END else scan.step(letter)
            if verdict == "bad":
                self.put_back(letter)
                return False
            self._say(None, letter)
            if verdict == "done":
                return True

    def silent_object(self) -> Reading[str | None]:
        """The text of the JSON object that follows, or None."""
        scan = JsonScan()
        letters: list[str] = []
        while True:
            letter = yield from self.letter()
            verdict = "bad" if letter == END else scan.step(letter)
            if verdict == "bad":
                return None
            letters.append(letter)
            if verdict == "done":
                return "".join(letters)

    def quoted(self) -> Reading[str | None]:
        """A short JSON text without escapes, or None."""
        if not (yield from self.expect('"')):
            return None
        text = yield from self.until('"\\\n', MAX_NAME_CHARS)
        return text if (yield from self.letter()) == '"' else None
