"""Answers as models write them, and as they do when something goes wrong: for tests of the output parser."""

from collections.abc import Sequence
from random import Random

import msgspec

from penstock.text.output_events import OutputEvent
from penstock.text.output_format import (
    DEEPSEEK,
    GENERIC,
    HARMONY,
    HERMES,
    LLAMA3,
    MISTRAL,
    PENSTOCK,
    OutputFormat,
)
from penstock.text.tool_calls import OutputParser

TOOLS = ("f", "get_weather")
_THINKS = {"think_begin": "<think>", "think_end": "</think>"}
FORMATS = {
    "hermes": HERMES,
    "qwen3": msgspec.structs.replace(HERMES, **_THINKS),
    "generic": GENERIC,
    "penstock": msgspec.structs.replace(PENSTOCK, think_begin="<|think|>", think_end="<|think_end|>"),
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "magistral": msgspec.structs.replace(MISTRAL, think_begin="[THINK]", think_end="[/THINK]"),
    "deepseek": DEEPSEEK,
    "deepseek_r1": msgspec.structs.replace(DEEPSEEK, **_THINKS),
    "harmony": HARMONY,
}

ARGUMENTS = (
    '{}', '{"city": "Paris"}', '{"a": [1, -2.5e3, true, null, {"b": "\\u00e9\\n"}]}',
    '{ "x" :\n"</tool_call>" }',
    '{"q": "<tool_call>{\\"name\\": 1}"}', '{"n": "}]"}', '{"a": tru}', '{"a": 01}', '{"a": "x',
    '{"a"', "{,}", "[]", '"text"', "null", "{'a': 1}",
)  # fmt: skip
PIECES = (
    " ", "\n", "\n\n", "word", "a < b", "été 🙂", "{", "}", "[", "]", '"', "\\", ":", ",", ";", "```",
    "```json\n",
    "<", "<tool", "<tool_call>", "</tool_call>", "<|", "<|tool_call|>", "<|tool_call_end|>", "<|python_tag|>",
    "[TOOL_CALLS]", "[TOOL", "[ARGS]", "[CALL_ID]x1", "<think>", "</think>", "<|think|>", "<|think_end|>",
    "[THINK]", "[/THINK]", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>", "<｜tool▁sep｜>", "function", "<|channel|>", "<|message|>", "<|start|>assistant",
    "<|end|>", "<|call|>", "<|return|>", "<|constrain|>json", "analysis", "final", "commentary",
    " to=functions.f", " to=functions.none", "f", "get_weather", "none", "name", '"name": "f"',
    '{"name": "f", ',
    '{"name": "none", ', '"arguments": ', '"parameters": ', '"id": "c1"', "<<tool_call>",
)  # fmt: skip


def a_call(random: Random, form: OutputFormat) -> str:
    """One call in the format's own words, sometimes of no tool, sometimes with arguments that are none."""
    name, arguments = random.choice((*TOOLS, "f", "none")), random.choice(ARGUMENTS)
    space = random.choice(("", " ", "\n"))
    members = [f'"name": "{name}"', f'"{form.arguments_key}": {arguments}']
    if random.random() < 0.2:
        members.append(random.choice(('"id": "c1"', '"type": "function"', '"other": 1')))
    if random.random() < 0.2:
        random.shuffle(members)
    whole = "{" + ("," + space).join(members) + "}"
    if form.style == "harmony":
        return f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{arguments}<|call|>"
    if form.style == "deepseek":
        one = random.choice(
            (f"function<｜tool▁sep｜>{name}\n```json\n{arguments}\n```", f"{name}<｜tool▁sep｜>{arguments}")
        )
        call = f"<｜tool▁call▁begin｜>{one}<｜tool▁call▁end｜>"
        return form.call_begin + space.join([call] * random.choice((1, 1, 2))) + form.call_end
    if form.style == "mistral":
        many = "[" + ", ".join([whole] * random.choice((1, 1, 2))) + "]"
        return form.call_begin + random.choice((many, f"{name}[ARGS]{arguments}", name + arguments))
    return form.call_begin + space + whole + space + form.call_end


def an_answer(random: Random, form: OutputFormat) -> str:
    """Text, thoughts and calls, well formed or not, sometimes cut off anywhere."""
    parts: list[str] = []
    if form.think_begin and random.random() < 0.5:
        parts += [form.think_begin, random.choice(("\n", "")), "hm <", random.choice(PIECES), form.think_end]
    for _ in range(random.randrange(5)):
        kind = random.random()
        if kind < 0.4:
            parts.append(a_call(random, form))
        elif kind < 0.5:
            parts.append("<|start|>assistant<|channel|>analysis<|message|>so be it<|end|>")
        else:
            parts += random.choices(PIECES, k=random.randrange(1, 4))
    text = "".join(parts)
    if random.random() < 0.3:
        text = text[: random.randrange(len(text) + 1)]
    return text


def cut(random: Random, text: str) -> list[str]:
    """`text` in pieces: single letters, a few large ones, or anything between."""
    if random.random() < 0.3:
        return list(text)
    cuts = sorted(random.randrange(len(text) + 1) for _ in range(random.randrange(8)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def parse(
    form: OutputFormat, pieces: Sequence[str], tools: Sequence[str] = TOOLS, *, is_thinking: bool = False
) -> list[OutputEvent]:
    """All events, those of one kind that follow each other joined."""
    parser = OutputParser(form, tools, is_thinking=is_thinking)
    joined: list[OutputEvent] = []
    for event in [event for piece in pieces for event in parser.feed(piece)] + parser.finish():
        last = joined[-1] if joined else None
        if type(last) is type(event) and hasattr(event, "text") and hasattr(last, "text"):
            joined[-1] = msgspec.structs.replace(last, text=last.text + event.text)
        else:
            joined.append(event)
    return joined
