"""Replies held to a grammar: each format in its own words, and no call that breaks its schema."""

import json
from random import Random

import numpy as np
import pytest
from msgspec.structs import replace
from tests.fakes.outputs import parse

from penstock.errors import GrammarLimitError, InvalidRequestError
from penstock.request import GrammarSpec
from penstock.text.call_styles import DEEPSEEK_CALL, DEEPSEEK_CALL_END, DEEPSEEK_SEP
from penstock.text.grammar_compiler import GrammarCompiler, GrammarMatcher
from penstock.text.grammar_wire import Vocabulary
from penstock.text.output_events import ToolArgumentsDelta, ToolCallEnd, ToolCallStart
from penstock.text.output_format import (
    DEEPSEEK,
    GENERIC,
    HARMONY,
    HERMES,
    LLAMA3,
    MISTRAL,
    PENSTOCK,
    OutputFormat,
    infer_format,
)
from penstock.text.reply_grammar import Reply, Tool

MARKS = (
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<|tool_call|>", "<|tool_call_end|>",
    "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>",
    DEEPSEEK_CALL, DEEPSEEK_CALL_END, DEEPSEEK_SEP, "<|channel|>", "<|message|>", "<|start|>", "<|end|>",
    "<|call|>", "<|return|>", "<|constrain|>",
)  # fmt: skip
EOS = 256 + len(MARKS)
SPECIAL_IDS = {256 + number: mark for number, mark in enumerate(MARKS)}
TOKENS = (*(bytes([byte]) for byte in range(256)), *(mark.encode() for mark in MARKS), b"<eos>")
AS_SPECIALS = GrammarCompiler(Vocabulary(TOKENS, (*SPECIAL_IDS, EOS), (EOS,)))
AS_TEXT = GrammarCompiler(Vocabulary(TOKENS, (EOS,), (EOS,)))
KINDS = {"specials": (AS_SPECIALS, SPECIAL_IDS), "text": (AS_TEXT, {})}

THINKS = {"think_begin": "<think>", "think_end": "</think>"}
FORMATS: dict[str, OutputFormat] = {
    "hermes": HERMES,
    "qwen3": replace(HERMES, **THINKS),
    "generic": GENERIC,
    "penstock": PENSTOCK,
    "llama3": LLAMA3,
    "llama3_single": replace(LLAMA3, is_single=True),
    "mistral": MISTRAL,
    "mistral_named": replace(MISTRAL, arguments_mark="[ARGS]"),
    "deepseek": DEEPSEEK,
    "deepseek_r1": replace(DEEPSEEK, arguments_mark="```json", **THINKS),
    "harmony": HARMONY,
}
STRICT = (
    '{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"],"additionalProperties":false}'
)
TOOLS = (Tool("f", STRICT), Tool("get_weather"))
ANSWER = GrammarSpec("json_schema", STRICT.replace('"a"', '"z"'))
GOOD, BAD, OTHER = '{"a": 1}', '{"b": 1}', '{"x": [1, "<b>"]}'


def ids_of(text: str) -> list[int]:
    """A mark is one token, as models write it."""
    ids: list[int] = []
    while text:
        mark = next((number for number, mark in enumerate(MARKS) if text.startswith(mark)), None)
        ids += list(text[0].encode()) if mark is None else [256 + mark]
        text = text[1 if mark is None else len(MARKS[mark]) :]
    return ids


def matcher_of(reply: Reply, kind: str) -> GrammarMatcher:
    compiler, specials = KINDS[kind]
    return compiler.compile(reply.grammar(specials))


def takes(reply: Reply, text: str, kind: str) -> bool:
    """Whether the whole text may be written, and may end there."""
    matcher, ids = matcher_of(reply, kind), ids_of(text)
    if matcher.accept(ids) < len(ids):
        return False
    return matcher.is_complete or bool(matcher.mask()[EOS // 32] >> EOS % 32 & 1)


def calls_of(form: OutputFormat, *calls: tuple[str, str]) -> str:
    """These calls, as the format's template writes them."""
    objects = [f'{{"name": "{name}", "{form.arguments_key}": {given}}}' for name, given in calls]
    match form.style:
        case "harmony":
            ((name, given),) = calls
            return f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{given}"
        case "bare_json":
            return "; ".join(objects)
        case "mistral" if form.arguments_mark:
            return "".join(f"[TOOL_CALLS]{name}[ARGS]{given}" for name, given in calls)
        case "mistral":
            return f"[TOOL_CALLS] [{', '.join(objects)}]"
        case "deepseek":
            inner = [
                f"function{DEEPSEEK_SEP}{name}\n```json\n{given}\n```" if form.arguments_mark
                else f"{name}{DEEPSEEK_SEP}{given}"
                for name, given in calls
            ]  # fmt: skip
            marked = "\n".join(f"{DEEPSEEK_CALL}{one}{DEEPSEEK_CALL_END}" for one in inner)
            return form.call_begin + marked + form.call_end
    return "\n".join(f"{form.call_begin}\n{one}\n{form.call_end}" for one in objects)


def text_of(form: OutputFormat, text: str) -> str:
    return f"<|channel|>final<|message|>{text}" if form.style == "harmony" else text


CASES = [(name, kind) for name in FORMATS for kind in KINDS if (name, kind) != ("harmony", "text")]


@pytest.mark.parametrize("must_call", [True, False], ids=["must", "may"])
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_calls_pass_in_the_formats_own_words_and_only_with_right_arguments(name, kind, must_call):
    form = FORMATS[name]
    reply = Reply(form=form, tools=TOOLS, must_call=must_call, thinking="may" if form.think_begin else "no")
    one, wrong = calls_of(form, ("f", GOOD)), calls_of(form, ("f", BAD))

    assert takes(reply, one, kind)
    assert takes(reply, calls_of(form, ("get_weather", OTHER)), kind)
    assert not takes(reply, wrong, kind)
    assert takes(reply, text_of(form, "Hello <b> {"), kind) is not must_call
    assert takes(reply, "", kind) is not must_call or form.style == "harmony"
    if form.style != "harmony":
        several = calls_of(form, ("f", GOOD), ("get_weather", OTHER))
        assert takes(reply, several, kind) is not form.is_single
        assert not takes(replace(reply, is_parallel=False), several, kind)
        assert takes(replace(reply, is_parallel=False), one, kind)
        assert not takes(reply, one + wrong, kind)
        if not must_call:
            assert takes(reply, f"{one}\nand text", kind)
    if form.style not in ("harmony", "bare_json") and not must_call:
        assert takes(reply, f"Well. {one} {one}", kind)
        assert not takes(reply, f"Well. {wrong}", kind)
        assert not takes(reply, f"Well. {form.call_begin} is a mark", kind)
    # what the parser finds in it is what was written
    starts = [event for event in parse(form, [one]) if isinstance(event, ToolCallStart)]
    assert [start.name for start in starts] == ["f"]


@pytest.mark.parametrize("kind", KINDS)
def test_marks_spelled_in_pieces_open_calls_just_as_well(kind):
    matcher = matcher_of(Reply(form=HERMES, tools=TOOLS), kind)
    spelled = list(b"Hi <tool_call>")
    told = matcher.accept(spelled)

    assert told == (len(spelled) if kind == "text" else len(spelled) - 1)  # a special token's letters: never


@pytest.mark.parametrize("kind", KINDS)
def test_reasoning_comes_first_where_the_template_has_it(kind):
    form = FORMATS["qwen3"]
    call = calls_of(form, ("f", GOOD))
    for must_call in (True, False):
        may, opened, no = (
            Reply(form=form, tools=TOOLS, must_call=must_call, thinking=thinking)
            for thinking in ("may", "opened", "no")
        )
        thought = f"<think>\nIf {BAD} were a call</think>\n\n{call}"

        assert takes(may, thought, kind)
        assert takes(may, call, kind)
        assert takes(opened, thought.removeprefix("<think>"), kind)
        assert not takes(opened, call, kind)
        assert not takes(no, thought, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_shape_holds_the_answer_behind_the_reasoning_or_calls_take_its_place(kind):
    for form in (HERMES, PENSTOCK, MISTRAL, DEEPSEEK):
        reply = Reply(form=form, tools=TOOLS, answer=ANSWER)
        assert takes(reply, '{"z": 1}', kind)
        assert takes(reply, calls_of(form, ("f", GOOD)), kind)
        assert not takes(reply, "Hello", kind)
        assert not takes(reply, GOOD, kind)
    form = FORMATS["qwen3"]
    for answer, good, bad in (
        (ANSWER, '{"z": 1}', GOOD),
        (GrammarSpec("json_object"), GOOD, "[1]"),
        (GrammarSpec("regex", "^a.c/d$"), "abc/d", "abcd"),
        (GrammarSpec("choice", '["yes", "no \\"x\\""]'), 'no "x"', "perhaps"),
    ):
        opened, may = (Reply(form=form, answer=answer, thinking=thinking) for thinking in ("opened", "may"))
        assert takes(opened, f"hm</think>\n\n{good}", kind)
        assert not takes(opened, f"hm</think>\n\n{bad}", kind)
        assert takes(may, f"<think>hm</think>{good}", kind)
        assert takes(may, good, kind)
        assert not takes(may, bad, kind)
        assert not takes(opened, good, kind)


def test_channels_hold_an_answer_in_the_last_one():
    reply = Reply(form=HARMONY, answer=ANSWER)
    thought = "<|channel|>analysis<|message|>hm {<|end|><|start|>assistant"

    assert takes(reply, thought + text_of(HARMONY, '{"z": 1}'), "specials")
    assert not takes(reply, thought + text_of(HARMONY, "{}"), "specials")
    assert not takes(reply, '{"z": 1}', "specials")


def test_bare_objects_are_free_unless_they_could_become_a_call():
    reply = Reply(form=LLAMA3, tools=TOOLS)
    for text in ('{"name": "Bob"}', '{"x": {"name": "f"}}', "{", 'It is {"name": "f", "parameters": {}}'):
        assert takes(reply, text, "specials"), text
    for text in ('{"name": "f"}', '{"parameters": {"b": 1}, "name": "f"}', ' {"id": "1", "name": "f"}'):
        assert not takes(reply, text, "specials"), text
    call = '{"name": "f", "parameters": {"a": 1}}'
    assert takes(reply, f"<|python_tag|>{call}", "specials")
    assert takes(reply, f"Well. <|python_tag|>{call}", "specials")
    assert not takes(reply, "<|python_tag|>print(1)", "specials")


def test_references_stay_within_their_own_schema():
    schema = json.dumps({
        "type": "object", "properties": {"p": {"$ref": "#/$defs/P"}}, "required": ["p"],
        "additionalProperties": False, "$defs": {"P": {"enum": ["x", "a::=b"]}},
    })  # fmt: skip
    reply = Reply(form=HERMES, tools=(Tool("f", schema), Tool("g", STRICT)), must_call=True)

    assert takes(reply, calls_of(HERMES, ("f", '{"p": "a::=b"}')), "text")
    assert not takes(reply, calls_of(HERMES, ("f", '{"p": "y"}')), "text")
    assert takes(reply, calls_of(HERMES, ("g", GOOD)), "text")


def test_what_cannot_be_held_is_refused_by_name():
    with pytest.raises(InvalidRequestError, match=r"grammar of your own.*leave the tools out") as own:
        Reply(form=HERMES, tools=TOOLS, answer=GrammarSpec("lark", 'start: "a"')).grammar({})
    with pytest.raises(InvalidRequestError, match=r"bare JSON.*set tool_choice") as bare:
        Reply(form=LLAMA3, tools=TOOLS, answer=ANSWER).grammar(SPECIAL_IDS)
    with pytest.raises(InvalidRequestError, match=r"no special token <\|channel\|>") as channels:
        Reply(form=HARMONY, tools=TOOLS, must_call=True).grammar({})
    with pytest.raises(GrammarLimitError, match="as one grammar") as large:
        Reply(form=HERMES, tools=[Tool(f"f{i}", STRICT) for i in range(500)], must_call=True).grammar({})

    assert [refused.value.param for refused in (own, bare, channels, large)] == [
        "structured_outputs.grammar", "tool_choice", "tools", "tools",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "arguments_mark", "is_single"),
    [
        ("[TOOL_CALLS] [", "", False),
        ("'[TOOL_CALLS]' + name + '[ARGS]'", "[ARGS]", False),
        ("<｜tool▁calls▁begin｜> + '\\n```json\\n'", "```json", False),
        ("<｜tool▁calls▁begin｜>", "", False),
        ('"parameters": This model only supports single tool-calls at once!', "", True),
        ("<tool_call>```json", "", False),
    ],
)
def test_the_template_tells_how_arguments_stand(source, arguments_mark, is_single):
    form = infer_format(source)

    assert (form.arguments_mark, form.is_single) == (arguments_mark, is_single)


def walk(matcher: GrammarMatcher, random: Random, limit: int = 250) -> str:
    """A reply drawn by chance, marks and ends more often than letters; cut off where it grows long."""
    ids: list[int] = []
    while not matcher.is_complete and len(ids) < limit:
        bits = np.unpackbits(matcher.mask().view(np.uint8), bitorder="little")[: EOS + 1]
        allowed = np.flatnonzero(bits).tolist()
        if EOS in allowed and (len(allowed) == 1 or random.random() < 0.1):
            break
        marks = [token for token in allowed if 256 <= token < EOS]
        letters = [token for token in allowed if 32 <= token < 127 or token == 10]
        pool = marks if marks and random.random() < 0.3 else letters or marks
        if not pool:
            pool = [token for token in allowed if token != EOS]
        ids.append(random.choice(pool))
        assert matcher.accept(ids[-1:]) == 1
    return b"".join(TOKENS[token] for token in ids).decode("utf-8", "replace")


def check_walks(name: str, kind: str, count: int) -> int:
    """Whatever is written: calls that the parser finds whole are calls of the tools, with right arguments."""
    form, random, num_calls = FORMATS[name], Random(f"{name} {kind}"), 0
    for _ in range(count):
        must_call, is_parallel = random.random() < 0.5, random.random() < 0.7
        thinking = random.choice(("may", "opened", "no")) if form.think_begin else "no"
        reply = Reply(form=form, tools=TOOLS, must_call=must_call, is_parallel=is_parallel, thinking=thinking)
        text = walk(matcher_of(reply, kind), random)
        names, given, num_here = {}, {}, 0
        for event in parse(form, [text], [tool.name for tool in TOOLS], is_thinking=thinking == "opened"):
            if isinstance(event, ToolCallStart):
                names[event.index] = event.name
                num_here += 1
            elif isinstance(event, ToolArgumentsDelta):
                given[event.index] = given.get(event.index, "") + event.text
            elif isinstance(event, ToolCallEnd) and event.is_complete:
                arguments = json.loads(given[event.index])
                if names[event.index] == "f":
                    assert arguments.keys() == {"a"}, text
                    assert isinstance(arguments["a"], int), text
                num_calls += 1
        assert num_here <= 1 or is_parallel, text
    return num_calls


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_no_reply_has_a_call_that_breaks_its_schema(name, kind):
    assert check_walks(name, kind, 12) > 0


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_no_reply_of_many_has_a_call_that_breaks_its_schema(name, kind):
    assert check_walks(name, kind, 120) > 10
