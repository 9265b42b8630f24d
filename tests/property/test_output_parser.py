"""One parser, any pieces: the events of a stream are those of the whole text; no letter is lost."""

import json
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes.outputs import FORMATS, TOOLS, an_answer, cut, parse

from penstock.text.json_scan import JsonScan
from penstock.text.output_events import (
    ContentDelta,
    ReasoningDelta,
    ToolArgumentsDelta,
    ToolCallEnd,
    ToolCallStart,
)


def check_chunkings(name: str, count: int) -> None:
    form, random = FORMATS[name], Random(f"chunks of {name}")
    num_calls = num_texts = 0
    for _ in range(count):
        text, is_thinking = an_answer(random, form), form.think_begin != "" and random.random() < 0.2
        pieces = cut(random, text)
        whole = parse(form, [text], is_thinking=is_thinking)

        assert parse(form, pieces, is_thinking=is_thinking) == whole, (pieces, is_thinking)
        num_calls += any(isinstance(event, ToolCallStart) for event in whole)
        num_texts += any(isinstance(event, ContentDelta) for event in whole)
    assert min(num_calls, num_texts) > count // 10  # both kinds of answer have been seen


@pytest.mark.parametrize("name", FORMATS)
def test_the_events_of_any_chunking_are_those_of_the_whole(name: str) -> None:
    check_chunkings(name, 500)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_the_events_of_100_000_chunkings_are_those_of_the_whole(name: str) -> None:
    check_chunkings(name, 10_000)


@pytest.mark.parametrize("name", FORMATS)
def test_what_comes_out_stands_in_the_text_in_this_order_and_once(name: str) -> None:
    form, random = FORMATS[name], Random(f"order of {name}")
    for _ in range(300):
        text = an_answer(random, form)
        at = 0
        for event in parse(form, [text]):
            if isinstance(event, ContentDelta | ReasoningDelta):
                found = text.find(
                    event.text, at
                )  # pieces that a mark held apart are joined: letter by letter
                for letter in event.text:
                    found = text.find(letter, at)

                    assert found >= 0, (text, event)
                    at = found + 1


@pytest.mark.parametrize("name", [name for name in FORMATS if FORMATS[name].style != "harmony"])
def test_an_answer_without_calls_and_thoughts_comes_out_as_it_is(name: str) -> None:
    form, random = FORMATS[name], Random(f"as it is: {name}")
    num_texts = 0
    for _ in range(500):
        text = an_answer(random, form)
        thinks = form.think_begin != "" and text.lstrip().startswith(form.think_begin)
        events = parse(form, [text])
        if not thinks and not any(isinstance(event, ToolCallStart) for event in events):
            assert events == ([ContentDelta(text)] if text else [])
            num_texts += text != ""
    assert num_texts > 50


@pytest.mark.parametrize("name", FORMATS)
def test_calls_are_numbered_ended_and_whole_where_they_say_so(name: str) -> None:
    form, random = FORMATS[name], Random(f"calls of {name}")
    for _ in range(300):
        text = an_answer(random, form)
        arguments: dict[int, str] = {}
        ended: list[int] = []
        for event in parse(form, [text]):
            if isinstance(event, ToolCallStart):
                assert event.name in TOOLS
                assert event.index == len(arguments)
                arguments[event.index] = ""
            elif isinstance(event, ToolArgumentsDelta):
                assert event.index not in ended
                arguments[event.index] += event.text
            elif isinstance(event, ToolCallEnd):
                ended.append(event.index)
                if event.is_complete:
                    assert isinstance(json.loads(arguments[event.index]), dict)
        assert ended == list(arguments)


@pytest.mark.parametrize("name", FORMATS)
@given(text=st.text('<tool_cal>|[TOOL_CALLS]{}\n "x', max_size=60))
def test_without_tools_and_thoughts_every_letter_is_content(name: str, text: str) -> None:
    form = FORMATS[name]
    if form.style == "harmony" or (form.think_begin and text.lstrip().startswith(form.think_begin)):
        return
    events = parse(form, list(text), tools=())

    assert events == ([ContentDelta(text)] if text else [])


@given(text=st.text('{}[]",:\\ \n01-+.eEtrufalsn', max_size=40))
def test_the_scan_takes_what_json_takes(text: str) -> None:
    text = "{" + text
    scan, verdict, end = JsonScan(), "more", 0
    while verdict == "more" and end < len(text):
        verdict = scan.step(text[end])
        end += 1
    try:
        _, expected_end = json.JSONDecoder().raw_decode(text)
    except ValueError:
        assert verdict != "done"
    else:
        assert (verdict, end) == ("done", expected_end)


@settings(max_examples=50)
@given(value=st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children), max_leaves=8,
), indent=st.sampled_from([None, 1]))  # fmt: skip
def test_the_scan_reads_every_object_to_its_end(value: object, indent: int | None) -> None:
    text = json.dumps({"value": value}, indent=indent, ensure_ascii=False)
    scan = JsonScan()

    assert [scan.step(letter) for letter in text] == ["more"] * (len(text) - 1) + ["done"]
