"""The official openai client, unmodified: every route it has here, its helpers and its exception classes."""

import base64
import contextlib
import json
import struct

import httpx
import openai
import pydantic
import pytest

MODEL = "penstock-tiny"
HI = [{"role": "user", "content": "hi"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}


@pytest.fixture
def client_of():
    """client_of(server, key=...): the official client; all are closed after the test."""
    with contextlib.ExitStack() as stack:
        yield lambda server, key="unused-but-there": stack.enter_context(
            openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)
        )


@pytest.fixture
def client(client_of, tiny):
    return client_of(tiny)


def test_a_completion_has_text_usage_and_one_end(client):
    answer = client.completions.create(model=MODEL, prompt="def f(", max_tokens=8, seed=1)

    assert answer.choices[0].text
    assert answer.choices[0].finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert answer.system_fingerprint


def test_streamed_text_is_the_text(client):
    asked = {"model": MODEL, "prompt": "import ", "max_tokens": 24, "seed": 3, "n": 2}
    whole = client.completions.create(**asked)
    texts, ends, usage = ["", ""], [0, 0], None
    for chunk in client.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            assert not ends[choice.index]
            texts[choice.index] += choice.text
            ends[choice.index] += choice.finish_reason is not None

    assert texts == [choice.text for choice in whole.choices]
    assert ends == [1, 1]
    assert usage == whole.usage


def test_prompts_come_in_four_shapes_and_answers_in_their_order(client, tiny):
    ids = tiny.engine.tokenizer.encode("def f(")
    one = client.completions.create(model=MODEL, prompt="def f(", max_tokens=6, seed=5).choices[0].text
    other = client.completions.create(model=MODEL, prompt="import ", max_tokens=6, seed=5).choices[0].text

    for prompt in (["def f(", "import "], [ids, tiny.engine.tokenizer.encode("import ")]):
        answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=6, seed=5)
        assert [choice.text for choice in answer.choices] == [one, other]
        assert [choice.index for choice in answer.choices] == [0, 1]
    assert client.completions.create(model=MODEL, prompt=ids, max_tokens=6, seed=5).choices[0].text == one


def test_logprobs_of_completions_are_parallel_lists(client):
    for count, most in ((0, 1), (5, 6)):
        answer = client.completions.create(model=MODEL, prompt="def f(", max_tokens=6, seed=1, logprobs=count)
        given, text = answer.choices[0].logprobs, answer.choices[0].text
        assert len(given.tokens) == len(given.token_logprobs) == len(given.top_logprobs) == 6
        assert all(max(1, count) <= len(top) <= most for top in given.top_logprobs)
        assert [
            text[at : at + len(token)] for at, token in zip(given.text_offset, given.tokens, strict=True)
        ] == given.tokens
    none = client.completions.create(model=MODEL, prompt="def f(", max_tokens=2, seed=1)
    assert none.choices[0].logprobs is None


def test_an_echo_has_the_prompt_and_its_logprobs(client):
    answer = client.completions.create(
        model=MODEL, prompt="def f(", max_tokens=3, seed=1, echo=True, logprobs=1
    )
    bare = client.completions.create(model=MODEL, prompt="def f(", max_tokens=0, echo=True, logprobs=1)
    given = answer.choices[0].logprobs

    assert answer.choices[0].text.startswith("def f(")
    assert given.token_logprobs[0] is None
    assert all(value <= 0 for value in given.token_logprobs[1:])
    assert bare.choices[0].text == "def f("
    assert bare.usage.completion_tokens == 0
    assert (
        bare.choices[0].logprobs.token_logprobs
        == given.token_logprobs[: len(bare.choices[0].logprobs.tokens)]
    )


def test_a_streamed_echo_begins_with_the_prompt(client):
    chunks = client.completions.create(
        model=MODEL, prompt="def f(", max_tokens=3, seed=1, echo=True, stream=True
    )

    assert "".join(chunk.choices[0].text for chunk in chunks).startswith("def f(")


def test_a_middle_is_filled_in(client):
    answer = client.completions.create(
        model=MODEL, prompt="def add(a, b):\n", suffix="\n    return c\n", max_tokens=8, seed=1
    )

    assert answer.choices[0].text


def test_a_chat_has_a_message(client):
    answer = client.chat.completions.create(model=MODEL, messages=HI, max_tokens=8, seed=1)

    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].finish_reason in ("stop", "length")


def test_a_streamed_chat_is_the_chat(client):
    asked = {"model": MODEL, "messages": HI, "max_tokens": 24, "seed": 4, "n": 2}
    whole = client.chat.completions.create(**asked)
    texts, roles, ends, usages = ["", ""], [0, 0], [0, 0], []
    for chunk in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        usages.append(chunk.usage)
        for choice in chunk.choices:
            roles[choice.index] += choice.delta.role is not None
            texts[choice.index] += choice.delta.content or ""
            ends[choice.index] += choice.finish_reason is not None

    assert texts == [choice.message.content for choice in whole.choices]
    assert roles == ends == [1, 1]
    assert usages[-1] == whole.usage
    assert set(usages[:-1]) == {None}


def test_the_clients_stream_helper_understands_the_stream(client_of, serve, scripted):
    client = client_of(serve(scripted(["Hel", "lo"])))
    with client.chat.completions.stream(model=MODEL, messages=HI, max_tokens=8, seed=1) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()

    assert "content.delta" in kinds
    assert final.choices[0].message.content


def test_logprobs_of_chats_are_per_token(client):
    answer = client.chat.completions.create(
        model=MODEL, messages=HI, max_tokens=5, seed=1, logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs.content

    assert len(content) == 5
    assert all(len(entry.top_logprobs) == 3 for entry in content)
    assert b"".join(bytes(entry.bytes) for entry in content).decode() == answer.choices[0].message.content
    streamed = [
        entry
        for chunk in client.chat.completions.create(
            model=MODEL, messages=HI, max_tokens=5, seed=1, logprobs=True, top_logprobs=3, stream=True
        )
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert streamed == content


def test_parts_of_text_are_the_text(client):
    asked = {"model": MODEL, "max_tokens": 6, "seed": 2}
    parts = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]

    one = client.chat.completions.create(messages=parts, **asked).choices[0].message.content
    assert one == client.chat.completions.create(messages=HI, **asked).choices[0].message.content


CALL = '<|tool_call|>{"name": "weather", "arguments": {"place": "Bath"}}<|tool_call_end|>'


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_call_is_parsed_whole_and_streamed(client_of, serve, scripted, size):
    text = "Let me look.\n" + CALL + CALL.replace("Bath", "York")
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    client = client_of(serve(scripted(pieces)))
    asked = {"model": MODEL, "messages": HI, "tools": [WEATHER]}
    whole = client.chat.completions.create(**asked).choices[0]
    with client.chat.completions.stream(**asked) as stream:
        streamed = stream.get_final_completion().choices[0]

    for choice in (whole, streamed):
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "Let me look."
        assert [json.loads(call.function.arguments) for call in choice.message.tool_calls] == [
            {"place": "Bath"},
            {"place": "York"},
        ]
        assert len({call.id for call in choice.message.tool_calls}) == 2


def test_one_call_at_a_time_where_that_is_asked_for(client_of, serve, scripted):
    client = client_of(serve(scripted([CALL, CALL])))
    answer = client.chat.completions.create(
        model=MODEL, messages=HI, tools=[WEATHER], parallel_tool_calls=False
    )

    assert len(answer.choices[0].message.tool_calls) == 1


def test_no_call_is_looked_for_where_none_may_be_made(client_of, serve, scripted):
    client = client_of(serve(scripted([CALL])))
    answer = client.chat.completions.create(model=MODEL, messages=HI, tools=[WEATHER], tool_choice="none")

    assert answer.choices[0].message.content == CALL
    assert answer.choices[0].finish_reason == "stop"


def test_a_round_of_tools_goes_into_the_prompt(client_of, serve, scripted):
    engine = scripted()
    client = client_of(serve(engine))
    turns = [
        *HI,
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c1", "type": "function",
             "function": {"name": "weather", "arguments": '{"place": "Bath"}'}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]  # fmt: skip
    client.chat.completions.create(model=MODEL, messages=turns, tools=[WEATHER])
    prompt = engine.tokenizer.decode(list(engine.calls[-1].prompt_tokens), skip_special=False)

    assert "The weather of a place." in prompt
    assert '{"name": "weather", "arguments": {"place": "Bath"}}' in prompt
    assert "<|tool|>rain" in prompt


class Person(pydantic.BaseModel):
    name: str
    age: int


def test_structured_output_is_parsed_by_the_client(client_of, serve, scripted):
    engine = scripted(['{"name": "Ada", ', '"age": 36}'])
    client = client_of(serve(engine))
    answer = client.chat.completions.parse(model=MODEL, messages=HI, response_format=Person)

    assert answer.choices[0].message.parsed == Person(name="Ada", age=36)
    assert engine.calls[-1].params.structured_outputs.json["properties"].keys() == {"name", "age"}
    client.chat.completions.create(model=MODEL, messages=HI, response_format={"type": "json_object"})
    assert engine.calls[-1].params.structured_outputs.json_object


def test_embeddings_are_numbers_or_base64(client_of, serve, scripted):
    client = client_of(serve(scripted()))
    numbers = client.embeddings.create(model=MODEL, input=["a", "b c"], encoding_format="float")
    packed = client.embeddings.create(model=MODEL, input="a", encoding_format="base64").data[0].embedding

    assert numbers.data[0].embedding == [2.0, 0.5, 1.0]
    assert [one.index for one in numbers.data] == [0, 1]
    assert numbers.usage.total_tokens == numbers.usage.prompt_tokens
    assert list(struct.unpack("<3f", base64.b64decode(packed))) == [2.0, 0.5, 1.0]
    assert client.embeddings.create(model=MODEL, input=[1, 2, 3]).data[0].embedding[0] == 3.0


def test_embeddings_are_those_of_the_engine(client, llm):
    for pooling in ("last", "mean"):
        asked = {"model": MODEL, "input": ["def f(", "import os"], "extra_body": {"pooling": pooling}}
        expected = [o.outputs.embedding for o in llm.embed(asked["input"], pooling=pooling, use_tqdm=False)]

        packed = [one.embedding for one in client.embeddings.create(**asked).data]
        assert packed == expected  # the client asks for base64 and unpacks it
        numbers = client.embeddings.create(**asked, encoding_format="float").data
        assert [one.embedding for one in numbers] == expected
        whole = client.embeddings.create(**asked, dimensions=len(expected[0]), encoding_format="float").data
        assert [one.embedding for one in whole] == expected


def test_vectors_are_cut_only_where_the_model_was_trained_for_it(client_of, client, serve, scripted):
    with pytest.raises(openai.BadRequestError) as untrained:
        client.embeddings.create(model=MODEL, input="a", dimensions=8)
    assert (untrained.value.param, untrained.value.code) == ("dimensions", "unsupported_parameter")
    cuts = client_of(serve(scripted()))
    numbers = cuts.embeddings.create(model=MODEL, input="a", dimensions=2, encoding_format="float").data[0]
    assert numbers.embedding == pytest.approx([2 / 4.25**0.5, 0.5 / 4.25**0.5])
    for bad in (1, 4, 0, -1, 2**40):
        with pytest.raises(openai.BadRequestError) as refused:
            cuts.embeddings.create(model=MODEL, input="a", dimensions=bad)
        assert refused.value.param == "dimensions"


def test_models_are_listed_and_found(client):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-5")


def test_errors_become_the_clients_own_exceptions(client_of, serve, scripted, tiny):
    from penstock.errors import DeadlineError, OverloadedError, RequestPoisonedError

    with pytest.raises(openai.BadRequestError) as bad:
        client_of(tiny).chat.completions.create(model=MODEL, messages=HI, temperature=3)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as missing:
        client_of(tiny).chat.completions.create(model="gpt-5", messages=HI)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError):
        client_of(serve(scripted(), keys=("the-right-key-1",))).models.list()
    for error, kind in (
        (OverloadedError("full; come back.", retry_after_s=2), openai.InternalServerError),
        (RequestPoisonedError("it ended the engine twice; not again."), openai.InternalServerError),
        (DeadlineError("its time is over; allow more."), openai.InternalServerError),
    ):
        with pytest.raises(kind) as caught:
            client_of(serve(scripted([error]))).chat.completions.create(model=MODEL, messages=HI)
        assert caught.value.status_code == error.http_status
        assert caught.value.code == error.code


def test_a_stream_that_fails_raises_and_never_looks_whole(client_of, serve, scripted):
    from penstock.errors import EngineError

    server = serve(scripted(["Hello", EngineError("a step broke; send it again.")]))
    with pytest.raises(openai.APIError):
        for _ in client_of(server).chat.completions.create(model=MODEL, messages=HI, stream=True):
            pass
    with server.client() as plain:
        text = plain.post("/v1/completions", json={"model": MODEL, "prompt": "x", "stream": True}).text
    assert "[DONE]" not in text
    assert '"finish_reason":"' not in text
    assert json.loads(text.strip().split("\n\n")[-1][6:])["error"]["type"] == "server_error"


def test_a_key_opens_the_server(client_of, serve, scripted):
    server = serve(scripted(), keys=("the-right-key-1", "another-key-22"))

    for key in ("the-right-key-1", "another-key-22"):
        assert client_of(server, key=key).models.list().data
    assert httpx.get(f"{server.url}/v1/models", headers={"x-api-key": "another-key-22"}).status_code == 200


def test_vllms_parameters_are_understood(client):
    answer = client.completions.create(
        model=MODEL, prompt="def f(", max_tokens=6, seed=1,
        extra_body={"top_k": 5, "min_p": 0.01, "repetition_penalty": 1.1, "min_tokens": 2, "ignore_eos": True,
                    "stop_token_ids": [9], "bad_words": ["import"], "return_token_ids": True,
                    "prompt_logprobs": 1,
                    "cache_salt": "a.b-c", "return_receipt": True, "skip_special_tokens": True,
                    "add_special_tokens": False, "priority": 3, "return_tokens_as_token_ids": True},
    )  # fmt: skip
    choice = answer.choices[0]

    assert len(choice.token_ids) == 6
    assert choice.prompt_token_ids == choice.prompt_token_ids[:3]
    assert choice.prompt_logprobs[0] is None
    assert answer.metrics["exactness"] == "exact"
    assert answer.metrics["energy_source"] == "none"
