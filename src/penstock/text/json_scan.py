"""Reads one JSON object letter by letter and says where it ends, or that it is none.

Called by `tool_calls`, which streams what has been read before the object is whole. Keeps no text.
"""

from typing import Literal

Verdict = Literal["more", "done", "bad"]

MAX_DEPTH = 128
_SPACE = " \t\n\r"
_DIGITS = "0123456789"
_HEX = "0123456789abcdefABCDEF"
_LITERALS = {"t": "rue", "f": "alse", "n": "ull"}
# Inside a number: state -> [(letters, next state)]; those in _NUMBER_ENDS may also end it.
_NUMBER = {
    "minus": [("0", "zero"), ("123456789", "int")],
    "zero": [(".", "point"), ("eE", "e")],
    "int": [(_DIGITS, "int"), (".", "point"), ("eE", "e")],
    "point": [(_DIGITS, "fraction")],
    "fraction": [(_DIGITS, "fraction"), ("eE", "e")],
    "e": [("+-", "sign"), (_DIGITS, "exponent")],
    "sign": [(_DIGITS, "exponent")],
    "exponent": [(_DIGITS, "exponent")],
}
_NUMBER_ENDS = {"zero", "int", "fraction", "exponent"}


class JsonScan:
    """Feed `step` one letter at a time, the first being `{`, until it says "done" or "bad".

    >>> scan = JsonScan()
    >>> [scan.step(letter) for letter in '{"a":1}']
    ['more', 'more', 'more', 'more', 'more', 'more', 'done']
    """

    __slots__ = ("_open", "_rest", "_state")

    def __init__(self) -> None:
        self._open: list[str] = []
        self._state = "start"
        self._rest = ""  # of a literal; how many hex digits are due, as a text of that length

    @property
    def is_in_string(self) -> bool:
        """Within a string or key: letters but quote, backslash and control characters change nothing."""
        return self._state in ("string", "key")

    def step(self, letter: str) -> Verdict:  # one branch for each state of the grammar
        state = self._state
        if state in _NUMBER:
            for letters, following in _NUMBER[state]:
                if letter in letters:
                    self._state = following
                    return "more"
            if state not in _NUMBER_ENDS:
                return "bad"
            state = self._state = "after"
        if state in ("string", "key"):
            if letter == '"':
                self._state = "colon" if state == "key" else "after"
            elif letter == "\\":
                self._state = f"{state} escape"
            return "bad" if letter < " " else "more"
        if state.endswith(" escape"):
            self._state = f"{state[:-7]} hex" if letter == "u" else state[:-7]
            self._rest = "0000" if letter == "u" else ""
            return "more" if letter in '"\\/bfnrtu' else "bad"
        if state.endswith(" hex"):
            self._rest = self._rest[1:]
            if not self._rest:
                self._state = state[:-4]
            return "more" if letter in _HEX else "bad"
        if state == "literal":
            if letter != self._rest[0]:
                return "bad"
            self._rest = self._rest[1:]
            if not self._rest:
                self._state = "after"
            return "more"
        return self._between(state, letter)

    def _between(self, state: str, letter: str) -> Verdict:
        """States in which space changes nothing."""
        if state == "start":
            return self._begin(letter) if letter == "{" else "bad"
        if letter in _SPACE:
            return "more"
        if state in ("value", "value or ]"):
            if letter == "]" and state == "value or ]":
                return self._end("[")
            return self._begin(letter)
        if state in ("a key", "key or }"):
            if letter == "}" and state == "key or }":
                return self._end("{")
            self._state = "key"
            return "more" if letter == '"' else "bad"
        if state == "colon":
            self._state = "value"
            return "more" if letter == ":" else "bad"
        if letter == ",":
            self._state = "a key" if self._open[-1] == "{" else "value"
            return "more"
        if letter in "]}":
            return self._end("[" if letter == "]" else "{")
        return "bad"

    def _begin(self, letter: str) -> Verdict:
        if letter in "{[":
            self._open.append(letter)
            self._state = "key or }" if letter == "{" else "value or ]"
            return "more" if len(self._open) <= MAX_DEPTH else "bad"
        if letter == '"':
            self._state = "string"
        elif letter in _LITERALS:
            self._state, self._rest = "literal", _LITERALS[letter]
        elif letter == "-":
            self._state = "minus"
        elif letter == "0":
            self._state = "zero"
        elif letter in _DIGITS:
            self._state = "int"
        else:
            return "bad"
        return "more"

    def _end(self, opened: str) -> Verdict:
        if self._open.pop() != opened:
            return "bad"
        self._state = "after"
        return "more" if self._open else "done"
