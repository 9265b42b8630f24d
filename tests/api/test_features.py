"""What users of other servers rely on, one behaviour after the other, beside what official clients show."""

import time

import pytest
from tests.api.wire import CHAT, TEXT, events_of

P, C = "/v1/completions", "/v1/chat/completions"
THINKS = "{% for m in messages %}{{ m['content'] }}{% endfor %}<tool_call> x.split('</think>')"


@pytest.fixture
def http(tiny):
    with tiny.client() as client:
        yield client


def answer(http, path, **body):
    reply = http.post(path, json={**(TEXT if path == P else CHAT), **body})
    assert reply.status_code == 200, reply.text
    return reply.json()


def stream(http, path, **body):
    reply = http.post(path, json={**(TEXT if path == P else CHAT), **body, "stream": True})
    assert reply.status_code == 200, reply.text
    events = events_of(reply.text)
    assert events[-1] == "[DONE]"
    return events[:-1]


@pytest.mark.parametrize("path", [P, C])
def test_usage_in_a_stream_is_said_as_it_is_asked_for(http, path):
    whole = answer(http, path)["usage"]
    for options, at_the_end, always in (
        (None, False, False),
        ({"include_usage": False}, False, False),
        ({"include_usage": True}, True, False),
        ({"include_usage": True, "continuous_usage_stats": True}, True, True),
        ({"include_usage": False, "continuous_usage_stats": True}, False, False),
    ):
        events = stream(http, path, **({} if options is None else {"stream_options": options}))
        last = [event for event in events if event["choices"] == []]
        counts = [event.get("usage") for event in events if event["choices"]]

        assert len(last) == at_the_end, options
        assert all((count is not None) == always for count in counts), options
        if at_the_end:
            assert events[-1]["usage"] | {"prompt_tokens_details": 0} == whole | {"prompt_tokens_details": 0}
        if always:
            tokens = [one["completion_tokens"] for one in counts]
            assert tokens == sorted(tokens)


@pytest.mark.parametrize("path", [P, C])
def test_each_of_several_answers_has_one_role_one_end_and_its_own_text(http, path):
    asked = {"n": 3, "max_tokens": 16, "temperature": 1.3, "stop": ["e"]}
    whole = answer(http, path, **asked)["choices"]
    texts, ends, roles = ["", "", ""], [0, 0, 0], [0, 0, 0]
    for event in stream(http, path, **asked):
        for choice in event["choices"]:
            index, delta = choice["index"], choice.get("delta", choice)
            assert not ends[index], "nothing follows an end"
            texts[index] += delta.get("content" if path == C else "text") or ""
            ends[index] += choice["finish_reason"] is not None
            roles[index] += "role" in delta

    assert texts == [c["text"] if path == P else c["message"]["content"] for c in whole]
    assert len(set(texts)) == 3
    assert ends == [1, 1, 1]
    assert roles == ([1, 1, 1] if path == C else [0, 0, 0])


def test_prompts_of_a_list_are_streamed_by_their_index(http):
    prompts = ["def f(", "import "]
    whole = [choice["text"] for choice in answer(http, P, prompt=prompts)["choices"]]
    texts = ["", ""]
    for event in stream(http, P, prompt=prompts):
        for choice in event["choices"]:
            texts[choice["index"]] += choice["text"]

    assert texts == whole


def test_logprobs_of_the_prompt_are_there_as_many_as_asked_for(http):
    for path in (P, C):
        for count in (0, 1, 3):
            made = answer(http, path, prompt_logprobs=count)
            rows = (made["choices"][0] if path == P else made)["prompt_logprobs"]

            assert rows[0] is None
            assert all(max(1, count) <= len(row) <= count + 1 for row in rows[1:])
        none = answer(http, path)
        assert "prompt_logprobs" not in (none["choices"][0] if path == P else none)
        bad = http.post(path, json={**(TEXT if path == P else CHAT), "prompt_logprobs": -1})
        assert (bad.status_code, bad.json()["error"]["param"]) == (400, "prompt_logprobs")


def test_logprobs_under_a_constraint_are_finite_and_its_answers_differ_by_seed(http):
    asked = {
        "guided_regex": "[a-z]{6}", "logprobs": True, "top_logprobs": 5, "max_tokens": 20, "temperature": 1.5,
    }  # fmt: skip
    texts = set()
    for seed in (1, 2):
        choice = answer(http, C, **asked, seed=seed)["choices"][0]
        texts.add(choice["message"]["content"])
        rows = choice["logprobs"]["content"]
        assert all(one["logprob"] >= -9999 for row in rows for one in (row, *row["top_logprobs"]))

    assert len(texts) == 2


def test_nulls_unknown_fields_of_messages_and_other_turns_are_taken(http):
    turns = [
        {"role": "system", "content": "Be brief.", "made_up": [1]},
        {"role": "user", "content": "hi", "name": "someone"},
        {"role": "assistant", "content": "hello", "refusal": None, "audio": None},
        {"role": "user", "content": [{"type": "text", "text": "and"}]},
    ]
    asked = {"messages": turns, "tool_choice": None, "tools": None, "response_format": {"type": "text"}}
    one = answer(http, C, **asked)["choices"]

    turns[3]["content"] = "and"
    assert answer(http, C, messages=turns)["choices"] == one


def test_reasoning_is_apart_shown_or_left_out(serve, scripted):
    engine = scripted(["<think>so", " it is</think>\n\nYes", "."])
    engine.reader = _Reader(engine.reader)
    server = serve(engine)
    with server.client() as http:
        for path, body, reasoning in (
            (C, {}, "so it is"), (C, {"include_reasoning": True}, "so it is"),
            (C, {"include_reasoning": False}, ""),
        ):  # fmt: skip
            message = answer(http, path, **body)["choices"][0]["message"]
            deltas = [event["choices"][0]["delta"] for event in stream(http, path, **body)]

            assert message["content"] == "".join(delta.get("content") or "" for delta in deltas) == "Yes."
            assert message.get("reasoning_content", "") == reasoning
            assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == reasoning
        shape = {"response_format": {"type": "json_object"}}
        answer(http, C, **shape)
        held = engine.calls[-1]

    assert "<think>" in held.params.structured_outputs.grammar  # the shape begins behind the reasoning
    assert held.grammar_param == "response_format"


class _Reader:
    """Reads with the real one, and says that its template is another."""

    template_source = THINKS

    def __init__(self, reader):
        self.read_conversation = reader.read_conversation
        self.read = reader.read


def test_the_load_counts_what_runs_and_waits(serve, scripted):
    server = serve(scripted(["a", "b"], hangs=True))
    with server.client() as http:
        assert http.get("/load").json() == {"server_load": 0}
        with http.stream("POST", P, json={**TEXT, "stream": True}) as reply:
            assert reply.status_code == 200
            end_s = time.monotonic() + 10
            while http.get("/load").json() != {"server_load": 1}:
                assert time.monotonic() < end_s


@pytest.mark.parametrize("path", [C, "/v1/messages", "/v1/messages/count_tokens", "/tokenize"])
def test_a_model_without_a_template_knows_no_roles(serve, scripted, path):
    engine = scripted()
    engine.reader = _Reader(engine.reader)
    engine.reader.template_source = None
    with serve(engine).client() as http:
        body = {"model": CHAT["model"], "messages": CHAT["messages"]}
        reply = http.post(path, json=body | ({"max_tokens": 4} if path == "/v1/messages" else {}))

    assert reply.status_code == 400
    assert "no chat template" in reply.text
