"""How tool calls are written, style by style: each a reading of what follows the format's first mark.

Called by `tool_calls`. A style says whether it understood at least one call; what it tried in vain has been
put back by then, or is put back by its caller.
"""

from typing import Literal

from penstock.text.output_format import OutputFormat
from penstock.text.output_reader import MAX_NAME_CHARS, OutputReader, Reading

Outcome = Literal["none", "broken", "whole"]  # no call; one whose arguments end early; a call

DEEPSEEK_CALL = "<｜tool▁call▁begin｜>"
DEEPSEEK_SEP = "<｜tool▁sep｜>"
DEEPSEEK_CALL_END = "<｜tool▁call▁end｜>"
FENCE = "```"


def tagged(reader: OutputReader, form: OutputFormat) -> Reading[bool]:
    """{"name": ..., "arguments": {...}} and the closing mark, which a text that was cut off lacks."""
    outcome = yield from call_object(reader)
    if outcome == "whole" and form.call_end:
        yield from _optional(reader, form.call_end)
    return outcome != "none"


def bare_json(reader: OutputReader, _form: OutputFormat) -> Reading[bool]:
    """The same objects alone, one after the other, with or without a semicolon between them."""
    outcome = yield from call_object(reader)
    if outcome == "none":
        return False
    while outcome == "whole":
        reader.attempt()
        letter = yield from reader.space()
        if letter == ";":
            letter = yield from reader.space()
        reader.put_back(letter)
        outcome = yield from call_object(reader)
    if outcome == "none":
        reader.give_up()
    return True


def mistral(reader: OutputReader, _form: OutputFormat) -> Reading[bool]:
    """A list of such objects, or NAME[ARGS]{...}, or NAME{...}."""
    first = yield from reader.space()
    if first != "[":
        reader.put_back(first)
        return (yield from _named(reader))
    outcome = yield from call_object(reader)
    if outcome == "none":
        return False
    while outcome == "whole":
        reader.attempt()
        letter = yield from reader.space()
        if letter == "]":
            reader.settle()
            return True
        outcome = (yield from call_object(reader)) if letter == "," else "none"
    if outcome == "none":
        reader.give_up()
    return True


def _named(reader: OutputReader) -> Reading[bool]:
    name = yield from reader.until("[{ \n", MAX_NAME_CHARS + 1)
    if (yield from reader.expect("[CALL_ID]")):
        yield from reader.until("[", MAX_NAME_CHARS)
    yield from reader.expect("[ARGS]")
    letter = yield from reader.space()
    reader.put_back(letter)
    if letter != "{" or name not in reader.tools:
        return False
    yield from reader.call(name)
    return True


def deepseek(reader: OutputReader, form: OutputFormat) -> Reading[bool]:
    """V3 and R1: `function SEP NAME, newline, a fenced block of JSON`. V3.1: `NAME SEP JSON`."""
    num_calls = 0
    while True:
        reader.attempt()
        outcome: Outcome = "none"
        if (yield from reader.expect(DEEPSEEK_CALL)):
            outcome = yield from _deepseek_call(reader)
        if outcome == "none":
            reader.give_up()
            break
        num_calls += 1
        if outcome == "broken":
            return True
    if num_calls:
        yield from _optional(reader, form.call_end)
    return num_calls > 0


def _deepseek_call(reader: OutputReader) -> Reading[Outcome]:
    kind = yield from reader.until(DEEPSEEK_SEP[0] + "\n", MAX_NAME_CHARS + 1)
    if not (yield from reader.expect(DEEPSEEK_SEP)):
        return "none"
    name, is_fenced = kind.strip(), False
    if name == "function":
        name = (yield from reader.until("\n{", MAX_NAME_CHARS + 1)).strip()
        is_fenced = yield from reader.expect(FENCE)
        if is_fenced and not (yield from reader.expect("json")):
            return "none"
    letter = yield from reader.space()
    reader.put_back(letter)
    if letter != "{" or name not in reader.tools:
        return "none"
    if not (yield from reader.call(name)):
        return "broken"
    if is_fenced:
        yield from _optional(reader, FENCE)
    yield from _optional(reader, DEEPSEEK_CALL_END)
    return "whole"


def call_object(reader: OutputReader) -> Reading[Outcome]:
    """{"name": ..., "arguments": {...}}, also with "parameters", "id" and "type", in any order."""
    if not (yield from reader.expect("{")):
        return "none"
    name = arguments = None
    while True:
        key = yield from _key(reader)
        if key == "name" and name is None:
            name = yield from reader.quoted()
            if name is None or name not in reader.tools:
                return "none"
        elif key in ("arguments", "parameters") and arguments is None:
            letter = yield from reader.space()
            reader.put_back(letter)
            if letter != "{":
                return "none"
            if name is not None:
                if not (yield from reader.call(name)):
                    return "broken"
                yield from _rest_of_object(reader)
                return "whole"
            arguments = yield from reader.silent_object()
            if arguments is None:
                return "none"
        elif key not in ("id", "type") or (yield from reader.quoted()) is None:
            return "none"
        letter = yield from reader.space()
        if letter == "}" and name is not None:
            yield from reader.call(name, arguments or "{}")
            return "whole"
        if letter != ",":
            return "none"


def _rest_of_object(reader: OutputReader) -> Reading[None]:
    """Behind the arguments: other keys, and the end. What is none of this is left to be text."""
    reader.attempt()
    while True:
        letter = yield from reader.space()
        if letter == "}":
            reader.settle()
            return
        key = (yield from _key(reader)) if letter == "," else None
        if key not in ("id", "type") or (yield from reader.quoted()) is None:
            reader.give_up()
            return


def _key(reader: OutputReader) -> Reading[str | None]:
    key = yield from reader.quoted()
    return key if key is not None and (yield from reader.expect(":")) else None


def _optional(reader: OutputReader, mark: str) -> Reading[None]:
    reader.attempt()
    if (yield from reader.expect(mark)):
        reader.settle()
    else:
        reader.give_up()
