"""The official anthropic client, unmodified: messages, streams, tools, token counts, its exceptions."""

import contextlib

import anthropic
import pytest

MODEL = "penstock-tiny"
HI = [{"role": "user", "content": "hi"}]
WEATHER = {
    "name": "weather",
    "description": "The weather of a place.",
    "input_schema": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
}
CALL = '<|tool_call|>{"name": "weather", "arguments": {"place": "Bath"}}<|tool_call_end|>'


@pytest.fixture
def client_of():
    """client_of(server, key=...): the official client; all are closed after the test."""
    with contextlib.ExitStack() as stack:
        yield lambda server, key="unused-but-there": stack.enter_context(
            anthropic.Anthropic(base_url=server.url, api_key=key, max_retries=0)
        )


def test_a_message_is_answered(client_of, tiny):
    answer = client_of(tiny).messages.create(model=MODEL, max_tokens=8, messages=HI, system="Be brief.")

    assert answer.role == "assistant"
    assert answer.content[0].type == "text"
    assert answer.stop_reason in ("end_turn", "max_tokens")
    assert answer.usage.output_tokens <= 8


def test_a_streamed_message_is_the_message(client_of, tiny):
    client = client_of(tiny)
    asked = {"model": MODEL, "max_tokens": 24, "messages": HI, "extra_body": {"seed": 7}}
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()

    assert final.content[0].text == whole.content[0].text
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 1


def test_a_stop_sequence_ends_the_message_and_is_named(client_of, tiny):
    text = client_of(tiny).messages.create(
        model=MODEL, max_tokens=24, messages=HI, extra_body={"seed": 7}).content[0].text  # fmt: skip
    stop = text[4:7]
    answer = client_of(tiny).messages.create(
        model=MODEL, max_tokens=24, messages=HI, stop_sequences=[stop], extra_body={"seed": 7}
    )

    assert answer.stop_reason == "stop_sequence"
    assert answer.stop_sequence == stop
    assert answer.content[0].text == text[: text.index(stop)]


@pytest.mark.parametrize("size", [1, 9, 1000])
def test_tools_are_called_and_answered(client_of, serve, scripted, size):
    text = "I look. " + CALL
    engine = scripted([text[at : at + size] for at in range(0, len(text), size)])
    client = client_of(serve(engine))
    asked = {"model": MODEL, "max_tokens": 64, "messages": HI, "tools": [WEATHER]}
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        streamed = stream.get_final_message()

    for answer in (whole, streamed):
        assert [block.type for block in answer.content] == ["text", "tool_use"]
        assert answer.content[1].input == {"place": "Bath"}
        assert answer.stop_reason == "tool_use"
    call = whole.content[1]
    turns = [*HI, {"role": "assistant", "content": [block.to_dict() for block in whole.content]},
             {"role": "user",
              "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "rain"}]}]  # fmt: skip
    client.messages.create(model=MODEL, max_tokens=8, messages=turns, tools=[WEATHER])
    prompt = engine.tokenizer.decode(list(engine.calls[-1].prompt_tokens), skip_special=False)
    assert "<|tool|>rain" in prompt
    assert '"place": "Bath"' in prompt


def test_tokens_are_counted_as_they_are_charged(client_of, tiny):
    client = client_of(tiny)
    count = client.messages.count_tokens(model=MODEL, messages=HI, system="Be brief.")
    answer = client.messages.create(model=MODEL, max_tokens=1, messages=HI, system="Be brief.")
    usage = answer.usage

    assert count.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


def test_errors_become_the_clients_own_exceptions(client_of, serve, scripted, tiny):
    from penstock.errors import OverloadedError

    with pytest.raises(anthropic.BadRequestError) as bad:
        client_of(tiny).messages.create(model=MODEL, max_tokens=8, messages=[])
    assert bad.value.body["error"]["type"] == "invalid_request_error"
    with pytest.raises(anthropic.NotFoundError):
        client_of(tiny).messages.create(model="claude", max_tokens=8, messages=HI)
    with pytest.raises(anthropic.AuthenticationError):
        client_of(serve(scripted(), keys=("the-right-key-1",))).messages.create(
            model=MODEL, max_tokens=8, messages=HI
        )
    full = serve(scripted([OverloadedError("full; come back.")]))
    with pytest.raises(anthropic.InternalServerError) as caught:
        client_of(full).messages.create(model=MODEL, max_tokens=8, messages=HI)
    assert caught.value.status_code == 503
    assert client_of(serve(scripted(), keys=("the-right-key-1",)), "the-right-key-1").messages.create(
        model=MODEL, max_tokens=8, messages=HI
    )


def test_a_stream_that_fails_raises(client_of, serve, scripted):
    from penstock.errors import EngineError

    server = serve(scripted(["Hello", EngineError("a step broke; send it again.")]))
    with (
        pytest.raises(anthropic.APIError),
        client_of(server).messages.stream(model=MODEL, max_tokens=8, messages=HI) as stream,
    ):
        stream.get_final_message()
