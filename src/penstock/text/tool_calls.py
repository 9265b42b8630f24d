"""An answer's text, in whatever pieces it comes -> content, reasoning and tool calls.

Called by whoever answers chats, one parser for each answer. Theorem, by construction and by test: joined, the
events of all pieces are those of the whole text, since everything follows letter by letter. Nothing is
swallowed but the marks and the space around them: what only looks like a call, or calls no tool of the
request, comes out as content; a call that breaks off is ended, and what follows is content.
"""

from collections.abc import Collection

from penstock.text import call_styles
from penstock.text.harmony import messages
from penstock.text.output_events import OutputEvent
from penstock.text.output_format import OutputFormat
from penstock.text.output_reader import END, SPACE, OutputReader, Reading

_STYLES = {
    "tagged": call_styles.tagged,
    "bare_json": call_styles.bare_json,
    "mistral": call_styles.mistral,
    "deepseek": call_styles.deepseek,
}


def thinks_at_once(form: OutputFormat, prompt: str) -> bool:
    """Whether a rendered prompt ends within the model's reasoning: its template has opened it."""
    return form.think_begin != "" and prompt.rstrip().endswith(form.think_begin)


class OutputParser:
    """`tools`: names that calls may have; none: calls are not looked for. `is_thinking`: see thinks_at_once.

    >>> from penstock.text.output_format import HERMES
    >>> parser = OutputParser(HERMES, ["f"])
    >>> events = parser.feed('Well.<tool_call>{"name": "f", "argum') + parser.feed('ents": {}}')
    >>> [type(event).__name__ for event in events + parser.finish()]
    ['ContentDelta', 'ToolCallStart', 'ToolArgumentsDelta', 'ToolCallEnd']
    """

    def __init__(self, form: OutputFormat, tools: Collection[str] = (), *, is_thinking: bool = False) -> None:
        self._form = form
        self._is_thinking = is_thinking
        self._reader = OutputReader(tools)
        self._reading = self._answer() if form.style != "harmony" else messages(self._reader)
        self._is_finished = False
        next(self._reading)

    def feed(self, text: str) -> list[OutputEvent]:
        """What became certain with this piece. Joined to what came before, never taken back."""
        assert not self._is_finished, "nothing follows the end"
        reader, reading = self._reader, self._reading
        at = 0
        while at < len(text):
            if reader.resting is not None:
                found = reader.resting.search(text, at)
                assert found is not None, "it finds the end of the piece"
                reader.say_resting(text[at : found.start()])
                at = found.start()
                if at == len(text):
                    break
            reading.send(text[at])
            at += 1
        return reader.taken()

    def finish(self) -> list[OutputEvent]:
        """The rest, once no text follows."""
        if not self._is_finished:
            self._is_finished = True
            try:
                self._reading.send(END)
            except StopIteration:
                pass
            else:
                raise AssertionError("a reading ends with its text")
        return self._reader.taken()

    def _answer(self) -> Reading[None]:
        """Reasoning, if it comes first; then text and calls until the end."""
        reader, form = self._reader, self._form
        is_behind_mark = False
        if self._is_thinking:
            yield from self._thought()
            is_behind_mark = True
        held, first = yield from self._first_letter()
        may_think = first != END and form.think_begin != "" and not is_behind_mark
        if may_think and (yield from reader.mark((form.think_begin,), first)) is not None:
            yield from self._thought()
            is_behind_mark = True
            held, first = yield from self._first_letter()
        reader.put_back(first)
        if not is_behind_mark:
            reader.put_back(held)
        looks_for_calls = bool(reader.tools)
        if looks_for_calls and form.style == "bare_json" and first == "{":
            is_behind_mark = (yield from self._try_calls("", "")) or is_behind_mark
        marks = (form.call_begin,) if looks_for_calls else ()
        while True:
            mark, held = yield from reader.text(
                reader.content, marks, skips_space=is_behind_mark, holds_space=True
            )
            if mark is None:
                return
            is_behind_mark = yield from self._try_calls(held, mark)

    def _thought(self) -> Reading[None]:
        reader = self._reader
        yield from reader.text(reader.reasoning, (self._form.think_end,), skips_space=True, holds_space=True)

    def _first_letter(self) -> Reading[tuple[str, str]]:
        """(space before it, the letter)."""
        held = ""
        while True:
            letter = yield from self._reader.letter()
            if letter == END or letter not in SPACE:
                return held, letter
            held += letter

    def _try_calls(self, held: str, mark: str) -> Reading[bool]:
        """Read calls behind `mark`; if there are none, it is content."""
        reader = self._reader
        reader.attempt()
        is_understood = yield from _STYLES[self._form.style](reader, self._form)
        if not is_understood:
            reader.give_up()
            reader.content(held + mark)
        return is_understood
