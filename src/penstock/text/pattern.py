"""A regular expression's size and shape, read before anything compiles it.

Called by `grammar` and `json_schema`. Refuses more than 100,000 states once its repetitions are written out,
and a repetition of nothing but a repetition, which matches one text in endlessly many ways. Syntax is the
compiler's to judge.
"""

import re
from dataclasses import dataclass

from penstock.errors import GrammarLimitError

MAX_STATES = 100_000
MAX_GROUPS = 64  # nested

_ASCII_CLASSES = {"d": "0-9", "w": "0-9A-Za-z_", "D": "^0-9", "W": "^0-9A-Za-z_"}
_QUANTIFIER = re.compile(r"[*+?]|\{(\d+)(,(\d*))?\}")


@dataclass(slots=True)
class _Group:
    """An open group: its finished alternatives, and the one that grows, as (text, states, is_open) items."""

    start: int
    alternatives: list[str]
    text: str = ""
    states: int = 0
    branch_states: int = 0
    branch_items: int = 0
    last_is_open: bool = False


def check_pattern(pattern: str, *, param: str) -> None:
    """Raise GrammarLimitError for what would cost too much.

    >>> check_pattern(r"(\\w+, )*\\w+", param="regex")
    """
    stack = [_Group(0, [])]
    at = 0
    while at < len(pattern):
        letter = pattern[at]
        if letter == "(":
            if len(stack) > MAX_GROUPS:
                raise _limit(f"has groups nested deeper than {MAX_GROUPS}", param)
            stack.append(_Group(at, []))
            at = _after_flags(pattern, at + 1)
            continue
        if letter == "|":
            top = stack[-1]
            top.alternatives.append(top.text)
            top.text, top.branch_items, top.last_is_open = "", 0, False
            at += 1
            continue
        if letter == ")" and len(stack) > 1:
            group = stack.pop()
            alternatives = [*group.alternatives, group.text]
            end = at + 1
            states = max(1, group.states)
            is_ambiguous = len(set(alternatives)) < len(alternatives) or (
                len(alternatives) == 1 and group.branch_items == 1 and group.last_is_open
            )
            begin = group.start
        else:
            begin, end = at, _after_atom(pattern, at)
            states, is_ambiguous = 1, False
        at = end
        is_open = is_ambiguous
        if found := _QUANTIFIER.match(pattern, at):
            low, high = _bounds(found)
            is_open = high is None
            if is_open and is_ambiguous:
                raise _limit(
                    f"repeats {pattern[begin:end][:40]!r}, which matches one text in endlessly many ways; "
                    "repeat what is in it once",
                    param,
                )
            states *= max(1, low if high is None else high)
            at = found.end()
            if at < len(pattern) and pattern[at] == "?":
                at += 1
        top = stack[-1]
        top.text += pattern[begin:at]
        top.states += states
        top.branch_items += 1
        top.last_is_open = is_open
        if top.states > MAX_STATES:
            raise _limit(f"has more than {MAX_STATES:,} states when its repetitions are written out", param)


def with_ascii_classes(pattern: str) -> str:
    r"""`\d` and `\w` as JSON schema and most engines mean them; the compiler's own take all of Unicode.

    >>> with_ascii_classes(r"\d+[\w-]\\d\D")
    '[0-9]+[0-9A-Za-z_-]\\\\d[^0-9]'
    """
    pieces: list[str] = []
    is_in_class = False
    at = 0
    while at < len(pattern):
        letter = pattern[at : at + 2] if pattern[at] == "\\" else pattern[at]
        if letter[1:] in _ASCII_CLASSES and len(letter) == 2:
            letters = _ASCII_CLASSES[letter[1]]
            if not is_in_class:
                pieces.append(f"[{letters}]")
            elif letters.startswith("^"):
                pieces.append(letter)
            else:
                pieces.append(letters)
        else:
            is_in_class = letter == "[" or (is_in_class and letter != "]")
            pieces.append(letter)
        at += len(letter)
    return "".join(pieces)


def _bounds(found: re.Match[str]) -> tuple[int, int | None]:
    """(lowest, highest or None) of a quantifier."""
    if found.group(1) is None:
        return {"*": (0, None), "+": (1, None), "?": (0, 1)}[found.group()]
    low = int(found.group(1)[:7])
    if found.group(2) is None:
        return low, low
    return low, int(found.group(3)[:7]) if found.group(3) else None


def _after_flags(pattern: str, at: int) -> int:
    """Behind `?:`, `?P<name>`, `?i:` at the beginning of a group."""
    found = re.compile(r"\?(P?<\w+>|[a-zA-Z-]*:?)").match(pattern, at)
    return found.end() if found else at


def _after_atom(pattern: str, at: int) -> int:
    r"""Behind one letter, class or escape: x, \d, \p{L}, [a-z]."""
    if pattern[at] == "\\":
        found = re.compile(r"\\([pPux]\{[^}]*\}|.)?", re.DOTALL).match(pattern, at)
        assert found is not None, "it begins with a backslash"
        return found.end()
    if pattern[at] == "[":
        at += 1
        if pattern[at : at + 1] == "^":
            at += 1
        if pattern[at : at + 1] == "]":
            at += 1
        while at < len(pattern) and pattern[at] != "]":
            at += 2 if pattern[at] == "\\" else 1
    return at + 1


def _limit(what: str, param: str) -> GrammarLimitError:
    return GrammarLimitError(f"{param}: the pattern {what}.", param=param)
