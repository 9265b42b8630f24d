"""Calls that must be made, and calls of strict tools: in the model's own marks, with arguments that fit.

The embedded model writes them, hardly taught what a call is: what fits, fits by the grammar.
"""

import contextlib
import json

import anthropic
import openai
import pytest

MODEL = "penstock-tiny"
HI = [{"role": "user", "content": "hi"}]
PLACE = {
    "type": "object",
    "properties": {
        "place": {"$ref": "#/$defs/Place"},
        "days": {"type": "integer", "maximum": 99, "minimum": 1},
    },
    "required": ["place", "days"],
    "additionalProperties": False,
    "$defs": {"Place": {"enum": ["Bath", "York"]}},
}
OPENS = 11  # the token <|tool_call|>
ENDS = (1, 7)  # the tokens that end an answer


def tool(name="weather", **more):
    return {"type": "function", "function": {"name": name, "parameters": PLACE, **more}}


def named(name="weather"):
    return {"type": "function", "function": {"name": name}}


def fits(arguments):
    arguments = json.loads(arguments)
    return arguments["place"] in ("Bath", "York") and 1 <= arguments["days"] <= 99 and len(arguments) == 2


@pytest.fixture(scope="module")
def client(tiny):
    with openai.OpenAI(base_url=f"{tiny.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def both(client, **asked):
    """The choice, and its calls: whole, which are those of the stream, put together delta by delta."""
    asked = {"model": MODEL, "messages": HI, "max_tokens": 120, **asked}
    whole = client.chat.completions.create(**asked).choices[0]
    calls, content, ends = [], "", []
    for chunk in client.chat.completions.create(**asked, stream=True):
        (choice,) = chunk.choices
        content += choice.delta.content or ""
        ends += [choice.finish_reason] if choice.finish_reason else []
        for delta in choice.delta.tool_calls or []:
            if delta.index == len(calls):
                calls.append([delta.function.name, ""])
            calls[delta.index][1] += delta.function.arguments

    said = [[call.function.name, call.function.arguments] for call in whole.message.tool_calls or []]
    assert calls == said
    assert content == (whole.message.content or "")
    assert ends == [whole.finish_reason]
    return whole, calls


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_call_that_must_be_made_is_made_with_arguments_that_fit(client, seed):
    tools = [tool(), tool("forecast")]
    choice, calls = both(client, tools=tools, tool_choice="required", parallel_tool_calls=False, seed=seed)

    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    ((name, arguments),) = calls
    assert name in ("weather", "forecast")
    assert fits(arguments)


def test_a_named_function_is_called_once(client):
    for name in ("weather", "forecast"):
        choice, calls = both(client, tools=[tool(), tool("forecast")], tool_choice=named(name), seed=4)

        assert choice.finish_reason == "tool_calls"
        assert [called for called, _ in calls] == [name]


def test_several_calls_are_made_where_that_is_allowed(client):
    tools = [tool(), tool("forecast")]
    more = {"tool_choice": "required", "logit_bias": {str(OPENS): 100}, "seed": 1, "max_tokens": 90}
    choice, calls = both(client, tools=tools, **more)
    _, one = both(client, tools=tools, parallel_tool_calls=False, **more)

    assert choice.finish_reason == "length"  # the bias wants ever more of them
    assert len(calls) > 1
    assert all(fits(arguments) for _, arguments in calls[:-1])
    assert len(one) == 1


def test_the_prompt_and_the_answer_have_the_templates_marks(client, tiny):
    answer = client.chat.completions.create(
        model=MODEL, messages=HI, tools=[tool()], tool_choice="required", max_tokens=120, seed=1,
        parallel_tool_calls=False, extra_body={"return_token_ids": True},
    )  # fmt: skip
    text = tiny.engine.tokenizer.decode(answer.choices[0].token_ids, skip_special=False)

    assert text.startswith("<|tool_call|>")
    assert text.endswith("<|tool_call_end|>")
    assert json.loads(text[len("<|tool_call|>") : -len("<|tool_call_end|>")])["name"] == "weather"


def test_a_strict_function_is_free_to_be_called_and_not_to_be_called_wrongly(client):
    more = {"parallel_tool_calls": False, "seed": 5, "max_tokens": 60}
    opened = {"logit_bias": {str(OPENS): 100}}
    choice, calls = both(client, tools=[tool(strict=True)], **more, **opened)
    spoken = {"logit_bias": {str(token): -100 for token in (OPENS, *ENDS)}}
    free, none = both(client, tools=[tool(strict=True)], **more, **spoken)
    lax, wrong = both(client, tools=[tool(strict=False)], **more, **opened)

    ((name, arguments),) = calls
    assert (name, fits(arguments)) == ("weather", True)
    assert choice.finish_reason in ("tool_calls", "length")
    assert free.message.content
    assert none == []
    assert wrong == []  # without strict, marks alone make no call
    assert "<|tool_call|>" in lax.message.content


def test_an_answer_of_a_shape_leaves_room_for_calls(client):
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": [17, True]}}}
    more = {"tools": [tool()], "response_format": shape, "seed": 6, "parallel_tool_calls": False}
    answer, none = both(client, **more, logit_bias={str(OPENS): -100})
    _, calls = both(client, **more, logit_bias={str(OPENS): 100})

    assert json.loads(answer.message.content) in (17, True)
    assert none == []
    assert [name for name, _ in calls] == ["weather"]


def test_what_cannot_be_enforced_is_refused_by_name(client):
    unique = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    refused = [
        ({"tools": [tool(strict="yes")]}, "tools[0].function.strict"),
        ({"tools": [tool("other"), tool(strict=True) | {"function": {
            "name": "f", "strict": True, "parameters": unique}}]}, "tools[1].function.parameters"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": unique}}],
          "tool_choice": "required"}, "tools[0].function.parameters"),
        ({"tools": [tool()], "tool_choice": "required", "response_format": {"type": "json_object"}},
         "tool_choice"),
        ({"tools": [tool()], "extra_body": {"guided_grammar": 'start: "a"'}}, "structured_outputs.grammar"),
    ]  # fmt: skip
    for asked, param in refused:
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model=MODEL, messages=HI, **asked)
        assert caught.value.param == param


@pytest.fixture
def anthropics(tiny):
    with contextlib.closing(anthropic.Anthropic(base_url=tiny.url, api_key="unused", max_retries=0)) as made:
        yield made


def test_anthropics_tools_are_forced_alike(anthropics):
    given = {"name": "weather", "input_schema": PLACE}
    for choice in ({"type": "any", "disable_parallel_tool_use": True}, {"type": "tool", "name": "weather"}):
        asked = {
            "model": MODEL, "max_tokens": 120, "messages": HI, "tools": [given], "tool_choice": choice,
            "extra_body": {"seed": 3},
        }  # fmt: skip
        whole = anthropics.messages.create(**asked)
        with anthropics.messages.stream(**asked) as stream:
            streamed = stream.get_final_message()

        for answer in (whole, streamed):
            assert [block.type for block in answer.content] == ["tool_use"]
            assert fits(json.dumps(answer.content[0].input))
            assert answer.stop_reason == "tool_use"
        assert whole.content[0].input == streamed.content[0].input
    with pytest.raises(anthropic.BadRequestError, match=r"tools\[0\]\.strict"):
        anthropics.messages.create(model=MODEL, max_tokens=9, messages=HI, tools=[given | {"strict": 1}])
