"""`penstock serve` as it is started, its engine in a process of its own, driven by the official client."""

import json
import os
import re
import subprocess
import sys

import openai
import pytest

HI = [{"role": "user", "content": "hi"}]
MODEL = "penstock-tiny"
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "side": {"enum": ["left", "right"]}},
    "required": ["ok", "side"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "turn", "parameters": SCHEMA}}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def client():
    process = subprocess.Popen(
        [sys.executable, "-m", "penstock.cli.main", "serve", "--port", "0", "--threads", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=dict(os.environ),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        url = re.search(r"http://\S+", process.stdout.readline())[0]
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none-is-needed", max_retries=0) as made:
            yield made
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_schema_binds_the_answer_also_in_a_stream(client):
    form = {"type": "json_schema", "json_schema": {"name": "turn", "schema": SCHEMA, "strict": True}}
    for seed in range(3):
        asked = {"model": MODEL, "messages": HI, "response_format": form, "seed": seed, "max_tokens": 200}
        whole = client.chat.completions.create(**asked).choices[0]
        pieces = client.chat.completions.create(**asked, stream=True)
        streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces)

        assert streamed == whole.message.content
        assert whole.finish_reason == "stop"
        value = json.loads(streamed)
        assert set(value) == {"ok", "side"}
        assert value["side"] in ("left", "right")


def test_a_call_that_must_be_made_is_made(client):
    for choice in ("required", {"type": "function", "function": {"name": "turn"}}):
        answer = client.chat.completions.create(
            model=MODEL, messages=HI, tools=[TOOL], tool_choice=choice, seed=1, max_tokens=200,
            parallel_tool_calls=False,
        )  # fmt: skip
        (call,) = answer.choices[0].message.tool_calls

        assert answer.choices[0].finish_reason == "tool_calls"
        assert call.function.name == "turn"
        assert set(json.loads(call.function.arguments)) == {"ok", "side"}


@pytest.mark.parametrize(
    ("extra", "pattern"),
    [
        ({"guided_regex": "[0-9]{3}-[a-f]{2}"}, r"\d{3}-[a-f]{2}"),
        ({"guided_choice": ["alpha", "beta"]}, "alpha|beta"),
        ({"guided_grammar": 'root ::= "yes" | "no"'}, "yes|no"),
        ({"structured_outputs": {"regex": "a{2,4}b"}}, "a{2,4}b"),
    ],
    ids=str,
)
def test_patterns_choices_and_grammars_bind_completions(client, extra, pattern):
    answer = client.completions.create(model=MODEL, prompt="x", max_tokens=60, seed=2, extra_body=extra)

    assert re.fullmatch(pattern, answer.choices[0].text)


@pytest.mark.parametrize(
    "extra",
    [
        {"guided_regex": "(a+"},
        {"guided_regex": "(.{1,1000}){1000}"},
        {"guided_grammar": "root ::= missing"},
        {"guided_json": {"type": "object", "properties": {"a": {"pattern": "("}}}},
    ],
    ids=str,
)
def test_what_cannot_bind_is_refused_and_costs_nobody(client, extra):
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model=MODEL, prompt="x", max_tokens=8, extra_body=extra)

    assert refused.value.param is not None
    assert client.completions.create(model=MODEL, prompt="x", max_tokens=2).choices


def test_the_same_request_is_answered_the_same(client):
    asked = {"model": MODEL, "prompt": "def f(", "max_tokens": 32, "seed": 5}
    texts = {client.completions.create(**asked).choices[0].text for _ in range(3)}

    assert len(texts) == 1
