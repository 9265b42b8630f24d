"""LLM over a model that is a hash: shapes, refusals, streams, stops, ends; the engine stays usable."""

import signal

import pytest
from tests.fakes.loaded import make_loaded
from tests.fakes.model import expected_tokens
from tests.fakes.tokenizer import END, VOCAB_SIZE, make_tokenizer

from penstock.engine.llm import LLM
from penstock.errors import ContextLengthError, EngineError, InvalidRequestError
from penstock.model.generation import GenerationDefaults
from penstock.request import SamplingParams
from penstock.sampling.params import seeds_of
from penstock.text.chat_template import ChatTemplate

TOKENIZER = make_tokenizer()


def make_llm(**options):
    return LLM.from_loaded(make_loaded(**options))


def params(**options):
    return SamplingParams(**({"max_tokens": 12, "seed": 7, "ignore_eos": True} | options))


def want(prompt, count=12, seed=7):
    return expected_tokens(TOKENIZER.encode(prompt), seed, count, vocab_size=VOCAB_SIZE)


def is_idle(llm):
    kv = llm.core.scheduler._kv
    kv.check_integrity()
    return (
        not llm.core.has_requests
        and kv.num_free_blocks == kv.num_usable_blocks
        and not llm._open
        and not llm.core._inputs._slots
        and not llm.core._stops._texts
    )


def test_answers_come_in_the_order_of_the_prompts_with_everything_in_them():
    llm = make_llm()
    outputs = llm.generate(["hello", "a much longer prompt than that", "x"], params())

    for prompt, output in zip(("hello", "a much longer prompt than that", "x"), outputs, strict=True):
        (one,) = output.outputs
        assert (output.prompt, output.prompt_token_ids) == (prompt, TOKENIZER.encode(prompt))
        assert one.token_ids == want(prompt)
        assert one.text == TOKENIZER.decode(one.token_ids)
        assert (one.index, one.finish_reason, one.stop_reason) == (0, "length", None)
        assert (one.logprobs, one.cumulative_logprob, output.prompt_logprobs) == (None, None, None)
        assert (output.finished, output.seed, output.system_fingerprint) == (True, 7, "fake")
        assert output.metrics.ttft_s > 0
        assert len(output.metrics.inter_token_s) == 11
    assert len({output.request_id for output in outputs}) == 3
    assert is_idle(llm)


def test_one_prompt_needs_no_list_and_ids_no_text():
    llm = make_llm()
    (text,) = llm.generate("hello", params())
    (ids,) = llm.generate({"prompt_token_ids": TOKENIZER.encode("hello")}, params())
    (both,) = llm.generate([{"prompt": "shown", "prompt_token_ids": TOKENIZER.encode("hello")}], params())

    assert text.outputs[0].token_ids == ids.outputs[0].token_ids == both.outputs[0].token_ids
    assert (ids.prompt, both.prompt) == (None, "shown")


def test_the_second_time_the_beginning_is_cached_and_the_answer_the_same():
    llm = make_llm()
    first, second, salted = (
        llm.generate({"prompt": "hello world", "cache_salt": salt}, params())[0] for salt in ("", "", "other")
    )

    assert [o.num_cached_tokens for o in (first, second, salted)] == [0, 8, 0]
    assert second.metrics.num_cached_tokens == 8
    assert first.outputs[0].token_ids == second.outputs[0].token_ids == salted.outputs[0].token_ids


def test_n_answers_are_n_requests_with_derived_seeds():
    llm = make_llm()
    (output,) = llm.generate("hello world", params(n=3))

    assert [o.index for o in output.outputs] == [0, 1, 2]
    for one, seed in zip(output.outputs, seeds_of(7, 3), strict=True):
        assert one.token_ids == want("hello world", seed=seed)
    assert output.num_cached_tokens == 2 * 8  # two forks read what the first computed
    assert is_idle(llm)


def test_each_prompt_may_have_its_own_params():
    outputs = make_llm().generate(["a", "b"], [params(max_tokens=2), params(max_tokens=5)])

    assert [len(o.outputs[0].token_ids) for o in outputs] == [2, 5]
    with pytest.raises(InvalidRequestError, match="2 prompts came with 1 sampling_params"):
        make_llm().generate(["a", "b"], [params()])
    with pytest.raises(InvalidRequestError, match="1 prompts came with 2 priorities"):
        make_llm().generate(["a"], params(), priority=[1, 2])


def test_without_params_the_authors_defaults_are_used():
    llm = make_llm(defaults=GenerationDefaults(eos_token_ids=(END,), temperature=0.25, top_k=4))

    assert llm.default_params == SamplingParams(temperature=0.25, top_k=4)
    assert len(llm.generate("hello")[0].outputs[0].token_ids) <= 16


def test_a_seedless_request_gets_a_seed_that_repeats_it():
    llm = make_llm()
    one, other = (llm.generate("hello", params(seed=None))[0] for _ in range(2))
    again = llm.generate("hello", params(seed=one.seed))[0]

    assert one.seed != other.seed
    assert again.outputs[0].token_ids == one.outputs[0].token_ids
    assert make_llm().generate("hello", params(seed=None))[0].seed == one.seed
    assert make_llm(seed=6).generate("hello", params(seed=None))[0].seed != one.seed


def test_logprobs_have_the_drawn_token_and_the_likeliest_with_their_texts():
    (output,) = make_llm().generate("hello", params(logprobs=2, prompt_logprobs=1, max_tokens=5))
    (one,) = output.outputs

    assert len(one.logprobs) == 5
    for token, row in zip(one.token_ids, one.logprobs, strict=True):
        assert next(iter(row)) == token
        assert {0, 1} <= set(row)
        assert row[token].decoded_token == TOKENIZER.token_text(token)
    drawn = sum(row[token].logprob for token, row in zip(one.token_ids, one.logprobs, strict=True))
    assert one.cumulative_logprob == pytest.approx(drawn)
    assert output.prompt_logprobs[0] is None
    assert [next(iter(row)) for row in output.prompt_logprobs[1:]] == output.prompt_token_ids[1:]


def test_prompt_logprobs_do_not_depend_on_chunks_or_the_cache():
    prompt = "a prompt of several chunks and blocks"
    whole = make_llm(max_step_tokens=64).generate(prompt, params(prompt_logprobs=0))[0]
    llm = make_llm(max_step_tokens=8)
    llm.generate(prompt, params())
    chunks = llm.generate(prompt, params(prompt_logprobs=0))[0]

    assert chunks.num_cached_tokens == 0
    assert chunks.prompt_logprobs == whole.prompt_logprobs
    assert len(whole.prompt_logprobs) == len(prompt)


def seed_that_draws(token, prompt="hello", by=6):
    """A seed whose answer has `token` within its first tokens, and where."""
    for seed in range(10_000):
        tokens = want(prompt, by, seed)
        if token in tokens[1:]:
            return seed, tokens.index(token)
    raise AssertionError("no such seed")


def test_end_of_sequence_ends_an_answer_unless_ignored():
    seed, at = seed_that_draws(END)
    llm = make_llm()
    ended, ignored = (
        llm.generate("hello", params(seed=seed, ignore_eos=ignore))[0].outputs[0] for ignore in (False, True)
    )

    assert (ended.finish_reason, ended.stop_reason) == ("stop", None)
    assert ended.token_ids == want("hello", at + 1, seed)
    assert ended.text == TOKENIZER.decode(ended.token_ids)
    assert ignored.token_ids == want("hello", 12, seed)


def test_a_stop_token_ends_an_answer_and_is_no_text_unless_included():
    letter = TOKENIZER.encode("q")[0]
    seed, at = seed_that_draws(letter)
    llm = make_llm()
    for include in (False, True):
        one = llm.generate(
            "hello", params(seed=seed, stop_token_ids=(letter,), include_stop_str_in_output=include)
        )[0].outputs[0]
        shown = want("hello", at + include, seed)

        assert (one.finish_reason, one.stop_reason) == ("stop", letter)
        assert one.token_ids == want("hello", at + 1, seed)
        assert one.text == TOKENIZER.decode(shown)


def test_min_tokens_holds_back_end_and_stop_strings():
    seed, at = seed_that_draws(END)
    one = make_llm().generate("hello", params(seed=seed, ignore_eos=False, min_tokens=at + 2))[0].outputs[0]

    assert len(one.token_ids) >= at + 2
    assert END not in one.token_ids[: at + 2]


def stop_case(seed=7):
    """A text with a stop string that spans tokens: its 4th to 6th characters."""
    tokens = want("hello", 12, seed)
    text = TOKENIZER.decode(tokens)
    return text, text[3:6]


@pytest.mark.parametrize("include", [False, True])
def test_a_stop_string_ends_the_answer_in_the_step_that_completes_it(include):
    text, stop = stop_case()
    llm = make_llm()
    (output,) = llm.generate("hello", params(stop=(stop,), include_stop_str_in_output=include))
    (one,) = output.outputs
    end = text.index(stop)

    assert (one.finish_reason, one.stop_reason) == ("stop", stop)
    assert one.text == text[: end + (len(stop) if include else 0)]
    assert stop in TOKENIZER.decode(one.token_ids)
    assert stop not in TOKENIZER.decode(one.token_ids[:-1])
    assert is_idle(llm)


def test_a_stop_string_within_min_tokens_does_not_count():
    text, stop = stop_case()
    one = make_llm().generate("hello", params(stop=stop, min_tokens=11))[0].outputs[0]

    assert (one.text, one.finish_reason) == (text, "length")


@pytest.mark.parametrize("options", [{}, {"stop": True}, {"n": 2}, {"logprobs": 1}])
def test_pieces_of_a_stream_join_to_the_whole_answer(options):
    if options.get("stop"):
        options = {"stop": stop_case()[1]}
    whole = make_llm().generate("hello", params(**options))[0]
    llm = make_llm()
    pieces = list(llm.stream("hello", params(**options)))
    for i, one in enumerate(whole.outputs):
        mine = [o for piece in pieces for o in piece.outputs if o.index == i]

        assert "".join(o.text for o in mine) == one.text
        assert [t for o in mine for t in o.token_ids] == one.token_ids
        assert [r for o in mine for r in o.logprobs or ()] == (one.logprobs or [])
        assert [o.finish_reason for o in mine] == [None] * (len(mine) - 1) + [one.finish_reason]
        assert mine[-1].stop_reason == one.stop_reason
    assert [p.finished for p in pieces] == [False] * (len(pieces) - 1) + [True]
    assert pieces[-1].metrics.num_preemptions == whole.metrics.num_preemptions
    assert is_idle(llm)


def test_dropping_a_stream_aborts_it():
    llm = make_llm()
    stream = llm.stream("hello", params(max_tokens=40))
    next(stream)
    assert llm.core.has_requests
    stream.close()

    assert is_idle(llm)


def test_a_stream_that_nobody_reads_was_never_queued():
    llm = make_llm()
    stream = llm.stream("hello", params())

    assert is_idle(llm)
    stream.close()
    assert is_idle(llm)


def test_streams_and_calls_may_be_mixed():
    llm = make_llm()
    stream = llm.stream("hello", params(max_tokens=30))
    first = next(stream)
    (other,) = llm.generate("x", params())
    rest = list(stream)
    tokens = [t for piece in (first, *rest) for o in piece.outputs for t in o.token_ids]

    assert other.outputs[0].token_ids == want("x")
    assert tokens == want("hello", 30)
    assert is_idle(llm)


TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }} {{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}a {% endif %}{{ extra }}"
)


def test_chat_renders_and_users_cannot_write_special_tokens():
    llm = make_llm(chat_template=ChatTemplate(TEMPLATE, {}))
    talk = [{"role": "user", "content": "hi<end>"}]
    (output,) = llm.chat(talk, params(max_tokens=3))

    assert output.prompt == "u hi<end><end>a "
    assert output.prompt_token_ids == TOKENIZER.encode("u hiend<end>a ")
    several = llm.chat([talk, talk[:1] * 2], params(max_tokens=3), add_generation_prompt=False)
    assert [o.prompt for o in several] == ["u hi<end><end>", "u hi<end><end>" * 2]
    (given,) = llm.chat(talk, params(max_tokens=1), chat_template_kwargs={"extra": "x"})
    assert given.prompt.endswith("a x")
    (own,) = llm.chat(talk, params(max_tokens=1), chat_template="{{ messages[0].role }}")
    assert own.prompt == "user"
    (piece, *_) = llm.stream(talk, params(max_tokens=1))
    assert piece.prompt == "u hi<end><end>a "


SAYING = (
    "{% for m in messages %}{{ m.name }}{{ m.content }}{{ m.reasoning_content }}{{ m.tool_call_id }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}"
    "{% for part in m.parts or [] %}{{ part.text }}{% endfor %}<end>{% endfor %}{{ tools | tojson }}"
)


@pytest.mark.parametrize(
    "said",
    [
        {"content": "<end>"},
        {"name": "<end>"},
        {"reasoning_content": "so <end>"},
        {"tool_call_id": "<end>"},
        {"parts": [{"text": "<end>"}]},
        {"tool_calls": [{"function": {"name": "f<end>", "arguments": {}}}]},
        {"tool_calls": [{"function": {"name": "f", "arguments": {"a<end>": ["<end>"]}}}]},
        {"tool_calls": [{"function": {"name": "f", "arguments": "<end>"}}]},
    ],
)
def test_no_field_of_a_message_and_no_tool_can_write_special_tokens(said):
    llm = make_llm(chat_template=ChatTemplate(SAYING, {}), max_context=512, num_blocks=256)
    tools = [{"type": "function", "function": {"name": "f", "description": "ends with <end>"}}]
    (output,) = llm.chat([{"role": "tool", **said}], params(max_tokens=1), tools=tools)

    assert output.prompt_token_ids.count(END) == 1  # the template's own
    assert output.prompt is not None
    assert output.prompt.count("<end>") > 2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda llm: llm.generate("", params()), "no tokens"),
        (lambda llm: llm.generate({"prompt_token_ids": []}, params()), "no tokens"),
        (lambda llm: llm.generate({"prompt_token_ids": [1, 30]}, params()), "prompt token 30 is no id"),
        (lambda llm: llm.generate({"prompt_token_ids": [-1]}, params()), "prompt token -1 is no id"),
        (lambda llm: llm.generate({"prompt_token_ids": [True]}, params()), "prompt token True"),
        (lambda llm: llm.generate({"prompt_token_ids": ["a"]}, params()), "prompt token 'a'"),
        (lambda llm: llm.generate({"prompt_token_ids": 5}, params()), "must be a sequence"),
        (lambda llm: llm.generate({"prompt": 5}, params()), "must be a str"),
        (lambda llm: llm.generate({"prompt": "a", "cache_salt": 5}, params()), "cache_salt is int"),
        (lambda llm: llm.generate({"text": "a"}, params()), "'prompt' or 'prompt_token_ids'"),
        (lambda llm: llm.generate({"prompt": "a", "lora": 1}, params()), "unknown key 'lora'"),
        (lambda llm: llm.generate([[1, 2]], params()), "give a text, or a dict"),
        (lambda llm: llm.generate("a", params(temperature=9.0)), "temperature is 9.0"),
        (lambda llm: llm.chat([[]], params()), "messages are no list"),
        (lambda llm: llm.chat([["a"]], params()), "messages are no list"),
        (lambda llm: llm.stream([], params()), "messages are no list"),
    ],
)
def test_bad_calls_are_refused_by_name_and_leave_nothing_behind(call, words):
    llm = make_llm(chat_template=ChatTemplate(TEMPLATE, {}))
    with pytest.raises(InvalidRequestError, match=words):
        call(llm)

    assert is_idle(llm)


def test_nothing_asked_is_nothing_answered():
    llm = make_llm(chat_template=ChatTemplate(TEMPLATE, {}))

    assert llm.generate([], params()) == []
    assert llm.chat([], params()) == []


def test_no_chat_template_is_said():
    with pytest.raises(InvalidRequestError, match="no chat template"):
        make_llm().chat([{"role": "user", "content": "a"}], params())


@pytest.mark.parametrize(
    ("num_prompt", "options", "words"),
    [
        (64, {"max_tokens": 1}, "prompt has 64 tokens; the context holds 64"),
        (65, {"max_tokens": None}, "prompt has 65 tokens; the context holds 64"),
        (60, {"max_tokens": 5}, "60 tokens and max_tokens=5 .* holds 64. Ask for at most 4"),
        (60, {"max_tokens": None, "min_tokens": 5}, "60 tokens and min_tokens=5 .* at most 4"),
    ],
)
def test_context_overflow_is_refused_with_both_counts(num_prompt, options, words):
    with pytest.raises(ContextLengthError, match=words):
        make_llm().generate("a" * num_prompt, params(**options))


def test_without_max_tokens_the_context_is_filled_to_the_last_token():
    (output,) = make_llm().generate("a" * 60, params(max_tokens=None))

    assert len(output.outputs[0].token_ids) == 4
    assert output.outputs[0].finish_reason == "length"


def test_a_prompt_that_no_cache_can_hold_leaves_the_others_unqueued():
    llm = make_llm(num_blocks=4)
    with pytest.raises(ContextLengthError, match="KV cache holds 16"):
        llm.generate(["fits", "a" * 20], params(max_tokens=4))

    assert is_idle(llm)
    assert llm.generate("fits", params(max_tokens=4))[0].finished


class Stumbling:
    """Fails in the given step, as a defect or a signal would."""

    def __init__(self, forward, at, fail):
        self._forward, self._at, self._fail, self._count = forward, at, fail, 0

    def __call__(self, step):
        self._count += 1
        if self._count == self._at:
            self._fail()
        return self._forward(step)


def raise_it(error):
    def fail():
        raise error

    return fail


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("error", [RuntimeError("broken"), MemoryError(), EngineError("broken")])
def test_a_failing_step_ends_the_call_and_the_engine_goes_on(at, error):
    llm = make_llm()
    llm.core._forward = Stumbling(llm.core._forward, at, raise_it(error))
    with pytest.raises(type(error)):
        llm.generate(["hello", "world wide"], params())

    assert is_idle(llm)
    assert llm.generate("hello", params())[0].outputs[0].token_ids == want("hello")


def test_ctrl_c_within_a_step_rises_after_it_and_leaves_the_engine_usable():
    llm = make_llm()
    seen = []

    def interrupt():
        signal.raise_signal(signal.SIGINT)
        seen.append("the step went on")

    llm.core._forward = Stumbling(llm.core._forward, 3, interrupt)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["hello", "world"], params())

    assert seen == ["the step went on"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert is_idle(llm)
    assert llm.generate("hello", params())[0].outputs[0].token_ids == want("hello")


def test_a_second_ctrl_c_is_not_held_back():
    llm = make_llm()

    def interrupt():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second one was held back")

    llm.core._forward = Stumbling(llm.core._forward, 2, interrupt)
    with pytest.raises(KeyboardInterrupt):
        llm.generate("hello", params())

    assert is_idle(llm)


def test_a_character_of_two_tokens_is_never_shown_in_half():
    pair = [28, 29]
    for seed in range(20_000):
        tokens = want("hello", 6, seed)
        at = next((i for i in range(5) if tokens[i : i + 2] == pair), None)
        if at is not None:
            break
    llm = make_llm()
    texts = [piece.outputs[0].text for piece in llm.stream("hello", params(seed=seed, max_tokens=at + 2))]

    assert texts[at] == ""
    assert texts[at + 1] == "é"


@pytest.mark.parametrize("policy", ["fcfs", "priority", "shortest_prefill"])
@pytest.mark.parametrize("windows", [(None,), (6,), (None, 5)])
def test_answers_do_not_depend_on_policy_memory_or_company(policy, windows):
    llm = make_llm(policy=policy, windows=windows, num_blocks=17, max_requests=5, max_step_tokens=9)
    prompts = ["hello world again", "hello world", "x", "hello there", "a b c d e f g"]
    outputs = llm.generate(prompts, params(max_tokens=40))

    for prompt, output in zip(prompts, outputs, strict=True):
        tokens = expected_tokens(TOKENIZER.encode(prompt), 7, 40, windows=windows, vocab_size=VOCAB_SIZE)
        assert output.outputs[0].token_ids == tokens
    assert is_idle(llm)
