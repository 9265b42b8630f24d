"""Each format's own words, and what becomes of those that are nearly right."""

import pytest
from tests.fakes.outputs import FORMATS, parse

from penstock.text.output_events import (
    ContentDelta,
    OutputEvent,
    ReasoningDelta,
    ToolArgumentsDelta,
    ToolCallEnd,
    ToolCallStart,
)
from penstock.text.tool_calls import thinks_at_once


def a_call(index: int, name: str, arguments: str, *, is_complete: bool = True) -> list[OutputEvent]:
    return [
        ToolCallStart(index, name),
        ToolArgumentsDelta(index, arguments),
        ToolCallEnd(index, is_complete),
    ]


TWO = [*a_call(0, "f", '{"a": 1}'), *a_call(1, "get_weather", "{}")]
ONE = a_call(0, "f", '{"a": 1}')


@pytest.mark.parametrize(
    "name, text, events",
    [
        (
            "hermes",
            'Well.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n'
            '<tool_call>{"arguments": {}, "name": "get_weather"}</tool_call>\n',
            [ContentDelta("Well."), *TWO],
        ),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1}, "id": "x"}</tool_call>', ONE),
        ("hermes", '<tool_call>{"name": "f"}</tool_call> end', [*a_call(0, "f", "{}"), ContentDelta("end")]),
        ("qwen3", "<think>\nhm\n</think>\n\nHi", [ReasoningDelta("hm"), ContentDelta("Hi")]),
        ("qwen3", "Hi <think> there", [ContentDelta("Hi <think> there")]),
        ("qwen3", "<think>\n\n</think>\n\n", []),
        (
            "penstock",
            '<|think|>so<|think_end|><|tool_call|>{"name": "f", "arguments": {"a": 1}}<|tool_call_end|>',
            [ReasoningDelta("so"), *ONE],
        ),
        (
            "llama3",
            '{"name": "f", "parameters": {"a": 1}}; {"name": "get_weather", "parameters": {}}',
            TWO,
        ),
        ("llama3", '<|python_tag|>{"type": "function", "name": "f", "parameters": {"a": 1}}', ONE),
        ("llama3", 'It is {"name": "f", "parameters": {}}', None),
        ("llama3", '{"name": "Bob", "parameters": {"a": 1}}', None),
        ("llama3", "<|python_tag|>print(1)", None),
        (
            "mistral",
            '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name": "get_weather", "arguments": {}}]',
            TWO,
        ),
        ("mistral", '[TOOL_CALLS]f[CALL_ID]c1[ARGS]{"a": 1}[TOOL_CALLS]get_weather{}', TWO),
        ("mistral", "[TOOL_CALLS] nothing", None),
        (
            "deepseek",
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n"
            '{"a": 1}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{}'
            "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            TWO,
        ),
        (
            "harmony",
            "<|channel|>analysis<|message|>Need it.<|end|><|start|>assistant<|channel|>commentary "
            'to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>',
            [ReasoningDelta("Need it."), *ONE],
        ),
        ("harmony", ' to=functions.f<|channel|>commentary json<|message|>{"a": 1}', ONE),
        ("harmony", "<|channel|>final<|message|> Hello <b>", [ContentDelta(" Hello <b>")]),
        ("harmony", "<|channel|>commentary to=functions.none<|message|>{}", None),
        ("harmony", "no header to=functions.f", None),
        ("hermes", '<tool_call>{"name": "none", "arguments": {}}</tool_call>', None),
        ("hermes", '<tool_call>{"name": "f", "arguments": "x"}</tool_call>', None),
        ("hermes", '<tool_call>{"name": "f", "other": 1}</tool_call>', None),
        ("hermes", '<tool_call>\n{"name": "f", "argum', None),
        ("hermes", "<tool_call", None),
        (
            "hermes",
            '<tool_call>{"name": "f", "arguments": {"a": tru',
            a_call(0, "f", '{"a": tru', is_complete=False),
        ),
        (
            "hermes",
            '<tool_call>{"name": "f", "arguments": {"a": trx}}</tool_call>',
            [*a_call(0, "f", '{"a": tr', is_complete=False), ContentDelta("x}}</tool_call>")],
        ),
        (
            "hermes",
            '<tool_call>{"name": "f", "arguments": {"a": 1}, "what": 1}</tool_call>',
            [*ONE, ContentDelta(', "what": 1}</tool_call>')],
        ),
        (
            "hermes",
            '<tool_call><tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>',
            [ContentDelta("<tool_call>"), *ONE],
        ),
    ],
)  # fmt: skip
def test_each_format_in_its_own_words(name: str, text: str, events: list[OutputEvent] | None) -> None:
    """None: all of it is content."""
    expected = [ContentDelta(text)] if events is None else events

    assert parse(FORMATS[name], [text]) == expected
    assert parse(FORMATS[name], list(text)) == expected


def test_a_prompt_that_opens_the_reasoning_is_noticed() -> None:
    assert thinks_at_once(FORMATS["qwen3"], "<|im_start|>assistant\n<think>\n")
    assert not thinks_at_once(FORMATS["qwen3"], "<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not thinks_at_once(FORMATS["hermes"], "<think>")
    assert parse(FORMATS["qwen3"], ["so\n</think>\n\nHi"], is_thinking=True) == [
        ReasoningDelta("so"),
        ContentDelta("Hi"),
    ]


def test_reasoning_that_is_cut_off_is_reasoning() -> None:
    assert parse(FORMATS["qwen3"], ["<think>so </th"]) == [ReasoningDelta("so </th")]
