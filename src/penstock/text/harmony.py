"""gpt-oss's messages: channels of reasoning, content and calls, each with a header.

    <|channel|>analysis<|message|>...<|end|>
    <|start|>assistant<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{...}<|call|>
    <|start|>assistant<|channel|>final<|message|>...<|return|>

Called by `tool_calls`. The answer begins behind `<|start|>assistant`. A header that is none is text.
"""

from collections.abc import Callable

from penstock.text.output_reader import END, MAX_HEADER_CHARS, OutputReader, Reading

CHANNEL, START, MESSAGE, CONSTRAIN = "<|channel|>", "<|start|>", "<|message|>", "<|constrain|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>")
THOUGHTS = "analysis"


def messages(reader: OutputReader) -> Reading[None]:
    """The whole answer, which begins within a header."""
    mark: str | None = ""
    while mark is not None:
        say = reader.content if mark in ENDS else (yield from _message(reader, mark))
        mark, _ = yield from reader.text(say, (CHANNEL, START, *ENDS), skips_space=False, holds_space=False)


def _message(reader: OutputReader, mark: str) -> Reading[Callable[[str], None]]:
    """Read the header behind `mark`, and the call that it may announce: what the text after it is."""
    reader.attempt()
    header = yield from _header(reader, mark)
    recipient = None if header is None else _recipient(header)
    if header is not None and recipient is None:
        reader.settle()
        return reader.reasoning if THOUGHTS in header.split() else reader.content
    if recipient in reader.tools:
        letter = yield from reader.space()
        reader.put_back(letter)
        if letter == "{":
            yield from reader.call(recipient)
            return reader.content
    reader.give_up()
    reader.content(mark)
    return reader.content


def _header(reader: OutputReader, mark: str) -> Reading[str | None]:
    """What a header says, up to and with <|message|>; None: it is no header."""
    text = ""
    while mark != MESSAGE:
        text += " " + (yield from reader.until("<", MAX_HEADER_CHARS))
        letter = yield from reader.letter()
        found = None if letter == END else (yield from reader.mark((CHANNEL, CONSTRAIN, MESSAGE), letter))
        if found is None or len(text) > MAX_HEADER_CHARS:
            return None
        mark = found
    return text


def _recipient(header: str) -> str | None:
    """The tool that a header is addressed to.

    >>> _recipient("commentary to=functions.f json"), _recipient("final")
    ('f', None)
    """
    for word in header.split():
        if word.startswith("to="):
            return word.removeprefix("to=").removeprefix("functions.")
    return None
