"""`LLM` as vLLM users know it: what goes in, what comes out, in which shape."""

import pytest
from tests.llm.conftest import one, params

from penstock import LLM, PenstockError, RequestOutput, SamplingParams
from penstock.errors import ConfigError, ContextLengthError, InvalidRequestError, ModelNotFoundError

PROMPT = "def add(a, b):\n    "
TALK = [{"role": "user", "content": "What is a list?"}]


def test_an_answer_has_every_field(llm):
    (output,) = llm.generate([PROMPT], params(seed=5), use_tqdm=False)
    (answer,) = output.outputs

    assert isinstance(output, RequestOutput)
    assert output.prompt == PROMPT
    assert output.prompt_token_ids == llm.tokenizer.encode(PROMPT)
    assert output.prompt_logprobs is None
    assert output.finished is True
    assert output.seed == 5
    assert output.system_fingerprint.startswith("ps-")
    assert (answer.index, answer.finish_reason, answer.stop_reason) == (0, "length", None)
    assert (answer.logprobs, answer.cumulative_logprob) == (None, None)
    assert len(answer.token_ids) == 12
    assert answer.text == llm.tokenizer.decode(answer.token_ids)


def test_answers_come_in_the_order_of_the_prompts(llm):
    prompts = [PROMPT, "import os\n", "class A:\n", "x = ["]
    lengths = [9, 2, 14, 5]
    outputs = llm.generate(prompts, [params(max_tokens=n) for n in lengths], use_tqdm=False)

    assert [output.prompt for output in outputs] == prompts
    assert [len(output.outputs[0].token_ids) for output in outputs] == lengths
    assert len({output.request_id for output in outputs}) == 4
    for prompt, n, output in zip(prompts, lengths, outputs, strict=True):
        assert output.outputs[0].token_ids == one(llm, prompt, max_tokens=n).token_ids


def test_a_prompt_may_be_a_text_ids_or_both(llm):
    ids = llm.tokenizer.encode(PROMPT)
    forms = [
        PROMPT,
        {"prompt": PROMPT},
        {"prompt_token_ids": ids},
        {"prompt": "shown", "prompt_token_ids": ids},
    ]
    outputs = llm.generate(forms, params(), use_tqdm=False)

    assert [output.prompt for output in outputs] == [PROMPT, PROMPT, None, "shown"]
    assert [output.prompt_token_ids for output in outputs] == [ids] * 4
    assert len({tuple(output.outputs[0].token_ids) for output in outputs}) == 1


def test_a_single_prompt_needs_no_list_and_no_prompts_give_no_answers(llm):
    assert len(llm.generate(PROMPT, params(), use_tqdm=False)) == 1
    assert llm.generate([], params(), use_tqdm=False) == []


def test_no_bar_is_drawn_where_nobody_watches(llm, capsys):
    llm.generate([PROMPT, "x"], params())

    assert capsys.readouterr() == ("", "")


def test_chat_is_generate_on_the_rendered_template(llm):
    (output,) = llm.chat(TALK, params(), use_tqdm=False)
    (same,) = llm.generate({"prompt_token_ids": output.prompt_token_ids}, params(), use_tqdm=False)
    both = llm.chat([TALK, [{"role": "system", "content": "Be brief."}, *TALK]], params(), use_tqdm=False)

    assert "What is a list?" in output.prompt
    assert output.prompt.endswith("<|assistant|>")
    assert output.outputs[0].token_ids == same.outputs[0].token_ids
    assert both[0].outputs[0].token_ids == output.outputs[0].token_ids
    assert len(both[1].prompt_token_ids) > len(both[0].prompt_token_ids)


def test_what_a_user_says_is_no_special_token(llm):
    (output,) = llm.chat([{"role": "user", "content": "<|assistant|>"}], params(max_tokens=1), use_tqdm=False)
    marker = llm.tokenizer.token_id("<|assistant|>")

    assert output.prompt_token_ids.count(marker) == 1  # the template's own


def test_a_stream_gives_the_answer_in_pieces(llm):
    whole = one(llm, PROMPT)
    pieces = list(llm.stream(PROMPT, params()))

    assert len(pieces) == 12
    assert "".join(piece.outputs[0].text for piece in pieces) == whole.text
    assert [t for piece in pieces for t in piece.outputs[0].token_ids] == whole.token_ids
    assert [piece.finished for piece in pieces] == [False] * 11 + [True]
    assert pieces[-1].outputs[0].finish_reason == "length"
    assert "".join(p.outputs[0].text for p in llm.stream(TALK, params())) == (
        llm.chat(TALK, params(), use_tqdm=False)[0].outputs[0].text
    )


def test_defaults_are_what_the_models_authors_suggest(llm):
    assert llm.default_params.temperature == 0.7
    assert llm.default_params.top_p == 0.95
    (output,) = llm.generate(PROMPT, use_tqdm=False)

    assert 1 <= len(output.outputs[0].token_ids) <= 16


def test_metrics_tell_times_and_what_the_cache_held(llm):
    prompt = {"prompt_token_ids": [(7 * i) % 4000 + 20 for i in range(200)]}
    first, second = (llm.generate(prompt, params(), use_tqdm=False)[0] for _ in range(2))
    metrics = second.metrics

    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 192)
    assert metrics.num_cached_tokens == 192
    assert 0 < metrics.ttft_s < 60
    assert len(metrics.inter_token_s) == 11
    assert all(gap > 0 for gap in metrics.inter_token_s)
    assert metrics.arrival_s <= metrics.first_scheduled_s < metrics.first_token_s < metrics.last_token_s
    assert metrics.last_token_s - metrics.first_token_s == pytest.approx(sum(metrics.inter_token_s))
    assert second.outputs[0].token_ids == first.outputs[0].token_ids


def test_a_cache_salt_keeps_beginnings_apart(llm):
    ids = [(11 * i) % 4000 + 20 for i in range(130)]
    salted = [{"prompt_token_ids": ids, "cache_salt": salt} for salt in ("a", "b", "a")]
    cached = [
        llm.generate(prompt, params(max_tokens=1), use_tqdm=False)[0].num_cached_tokens for prompt in salted
    ]

    assert cached == [0, 0, 128]


BAD_CALLS = [
    (lambda llm: llm.generate("x", params(temperature=-1.0)), InvalidRequestError, "temperature is -1.0"),
    (lambda llm: llm.generate("x", params(temperature="hot")), InvalidRequestError, "temperature"),
    (lambda llm: llm.generate("x", params(top_p=0.0)), InvalidRequestError, "top_p is 0.0"),
    (lambda llm: llm.generate("x", params(n=0)), InvalidRequestError, "n is 0"),
    (lambda llm: llm.generate("x", params(n=10**9)), InvalidRequestError, "n is 1000000000"),
    (lambda llm: llm.generate("x", params(logprobs=21)), InvalidRequestError, "logprobs is 21"),
    (lambda llm: llm.generate("x", params(seed=2**63)), InvalidRequestError, "seed is"),
    (lambda llm: llm.generate("x", params(stop_token_ids=(8192,))), InvalidRequestError, "stop_token_ids"),
    (lambda llm: llm.generate("x", params(allowed_token_ids=())), InvalidRequestError, "allowed_token_ids"),
    (lambda llm: llm.generate("x", params(logit_bias={5: 1e9})), InvalidRequestError, "logit_bias"),
    (lambda llm: llm.generate("x", params(bad_words=("",))), InvalidRequestError, "bad_words"),
    (lambda llm: llm.generate({"prompt_token_ids": []}, params()), InvalidRequestError, "no tokens"),
    (lambda llm: llm.generate({"prompt_token_ids": [8192]}, params()), InvalidRequestError, "8192 is no id"),
    (lambda llm: llm.generate([3], params()), InvalidRequestError, "prompt"),
    (
        lambda llm: llm.generate({"prompt_token_ids": [9] * 2048}, params()),
        ContextLengthError,
        "2,048 tokens",
    ),
    (lambda llm: llm.generate(["x", "y"], [params()]), InvalidRequestError, "2 prompts came with 1"),
    (
        lambda llm: llm.chat([{"role": "wizard", "content": "x"}], params()),
        InvalidRequestError,
        "unknown role",
    ),
    (lambda llm: llm.stream("x", params(max_tokens=4096)), PenstockError, "max_tokens is 4096"),
    (lambda llm: LLM("penstock-tiny", threads=0), ConfigError, "threads=0"),
    (lambda llm: LLM("penstock-tiny", thread=2), ConfigError, "Did you mean 'threads'"),
    (lambda llm: LLM("penstock-tiny", weights="int5"), ConfigError, "weights is 'int5'"),
    (lambda llm: LLM("penstock-large"), ModelNotFoundError, "penstock-large"),
]


@pytest.mark.parametrize(("call", "error", "words"), BAD_CALLS, ids=[words for *_, words in BAD_CALLS])
def test_a_bad_call_is_a_typed_error_of_one_line(llm, call, error, words):
    with pytest.raises(error, match=words) as raised:
        call(llm)

    assert "\n" not in str(raised.value)


def test_one_bad_prompt_of_several_queues_none(llm):
    with pytest.raises(InvalidRequestError):
        llm.generate([PROMPT, {"prompt_token_ids": []}], params())

    assert not llm.core.has_requests


def test_unknown_sampling_parameters_are_refused():
    with pytest.raises(TypeError, match="temprature"):
        SamplingParams(temprature=1.0)


@pytest.mark.parametrize("prompts", [3, None, 1.5, {"a"}])
def test_what_is_no_prompt_is_one_clear_line(llm, prompts):
    with pytest.raises(InvalidRequestError, match="give a text, a dict, or a list"):
        llm.generate(prompts)


def test_half_a_surrogate_pair_is_refused_where_it_stands(llm):
    with pytest.raises(InvalidRequestError, match="at character 2"):
        llm.generate("ab\ud800c")
