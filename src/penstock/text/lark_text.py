"""Grammars in Lark's syntax, written rule by rule: marks, free text up to a mark, JSON of a schema.

Called by `reply_grammar`. A mark that is a special token is matched by its id, and its spelling in other
tokens is no text: whoever reads the answer sees letters, not tokens. Two free texts are told apart by what
they may not hold, so that at no letter two of them compete.
"""

import json
import re
from collections.abc import Mapping, Sequence

from penstock.errors import InvalidRequestError
from penstock.text.grammar import JSON_SPACE

SOMETHING = "/(?s:.+)/"


def literal(text: str) -> str:
    """A text that stands for itself.

    >>> literal('a"b')
    '"a\\\\"b"'
    """
    return json.dumps(text, ensure_ascii=False)


class LarkText:
    """Rules under way. A method that makes one returns the name to use it by; equal ones are made once."""

    def __init__(self, special_ids: Mapping[int, str]) -> None:
        self._ids = {text: token_id for token_id, text in special_ids.items()}
        self._lines: dict[str, str] = {}  # what is behind the colon -> name

    def text(self, start: str) -> str:
        lines = [f"{name}: {body}" for body, name in self._lines.items()]
        return "\n".join([f"start: {start}", *lines]) + "\n"

    def mark(self, mark: str) -> str:
        return f"<[{self._ids[mark]}]>" if mark in self._ids else literal(mark)

    def need_special(self, mark: str) -> None:
        """InvalidRequestError: this tokenizer has no such token."""
        if mark not in self._ids:
            raise InvalidRequestError(
                f"this model's tokenizer has no special token {mark}, so that its tool calls and its "
                "reasoning cannot be held to a grammar; leave tool_choice and strict out.",
                param="tools",
                code="unsupported_parameter",
            )

    def terminal(self, pattern: str) -> str:
        return self._named("T", f"/{_slashed(pattern)}/")

    def json(self, schema: str) -> str:
        """JSON that the schema, a JSON text, accepts. A schema of its own: its references stay in it."""
        value = json.loads(schema) | {"x-guidance": {"whitespace_pattern": JSON_SPACE}}
        return self._named("j", "%json " + json.dumps(value, ensure_ascii=False, separators=(",", ":")))

    def free(self, without: Sequence[str], *, not_first: str = "") -> str:
        """Some text without these marks, whose beginning does not match `not_first`."""
        parts = [SOMETHING, *(f"~/(?s:.*){_escaped(mark)}(?s:.*)/" for mark in without)]
        if not_first:
            parts.append(f"~/(?:{_slashed(not_first)})(?s:.*)/")
        return self._named("T", " & ".join(parts))

    def up_to(self, mark: str, *, not_first: str = "") -> str:
        """Any text, or none, and the first such mark."""
        if mark in self._ids:
            return f"{self.free((mark,), not_first=not_first)}? {self.mark(mark)}"
        body = f"/(?s:.*){_escaped(mark)}/"
        if not_first:
            body += f" & ~/(?:{_slashed(not_first)})(?s:.*)/"
        return self._named("u", self._named("T", body), options="[lazy]")

    def opening(self, mark: str) -> str:
        """The mark, perhaps after space."""
        space = "[ \\t\\r\\n]"
        if mark in self._ids:
            return f"{self.terminal(f'{space}{{1,8}}')}? {self.mark(mark)}"
        return self.terminal(f"{space}{{0,8}}{re.escape(mark)}")

    def _named(self, kind: str, body: str, *, options: str = "") -> str:
        """Names in capitals are terminals."""
        name = self._lines.setdefault(body, f"{kind}{len(self._lines)}{options}")
        return name.removesuffix(options) if options else name


def _escaped(text: str) -> str:
    return _slashed(re.escape(text))


def _slashed(pattern: str) -> str:
    """Every / with a backslash before it, as it ends a pattern in Lark; no line ends.

    >>> _slashed("a/b\\\\/c")
    'a\\\\/b\\\\/c'
    """
    return re.sub(r"\\.|/", lambda m: "\\/" if m[0] == "/" else m[0], pattern).replace("\n", "\\n")
