import numpy as np
import pytest

from penstock.errors import InvalidRequestError
from penstock.request import SamplingParams
from penstock.sampling.params import bad_word_ids, banned_now, check, seeds_of

VOCAB_SIZE, MAX_CONTEXT = 1000, 512
NAN, INF = float("nan"), float("inf")
REALS = {
    "temperature": ([0.0, -0.0, 5e-324, 1e-5, 1, 2.0], [-0.01, 2.01, -5e-324]),
    "top_p": ([5e-324, 0.5, 1, 1.0], [0, 0.0, -0.1, 1.0001]),
    "min_p": ([0.0, -0.0, 1], [-0.1, 1.1]),
    "typical_p": ([0.1, 1.0], [0.0, 1.1]),
    "repetition_penalty": ([0.01, 1, 10.0], [0, 0.0, -1.0, 10.01]),
    "presence_penalty": ([-2, 0, 2.0], [-2.01, 2.01]),
    "frequency_penalty": ([-2, 0, 2.0], [-2.01, 2.01]),
}
INTEGERS = {
    "n": ([1, 16], [0, -1, 17, 10**6]),
    "top_k": ([-1, 0, 1, 10**9, 2**62], [-2, 2**63]),
    "min_tokens": ([0, 3], [-1, MAX_CONTEXT + 1]),
    "max_tokens": ([1, MAX_CONTEXT, None], [0, -1, MAX_CONTEXT + 1, 2**31]),
    "seed": ([0, -1, -(2**63), 2**63 - 1, None], [-(2**63) - 1, 2**63, 2**64, 2**53 * 2**400]),
    "logprobs": ([None, 0, 20], [-1, 21, VOCAB_SIZE]),
    "prompt_logprobs": ([None, 0, 20], [-1, 21]),
}
FLAGS = ["include_stop_str_in_output", "ignore_eos", "skip_special_tokens"]
LISTS = {
    "stop": ["", [""], ["a"] * 17, ["x" * 257], ["é" * 129], ["a\0b"], ["\ud800"]],
    "bad_words": [[""], ["  "], ["a"] * 1025, ["x" * 257], ["\udfff"]],
    "stop_token_ids": [[-1], [VOCAB_SIZE], [2**31], [2**63], [1] * 1025],
    "allowed_token_ids": [[], [-1], [VOCAB_SIZE], [1] * 1025],
    "logit_bias": [
        {-1: 1.0},
        {VOCAB_SIZE: 1.0},
        {1: 100.5},
        {1: -101},
        {1: NAN},
        {1: INF},
        dict.fromkeys(range(1025), 1.0),
    ],
}


def refusal_of(**params):
    with pytest.raises(InvalidRequestError) as refused:
        check(SamplingParams(**params), 2000 if "logit_bias" in params else VOCAB_SIZE, MAX_CONTEXT)
    return refused.value


def cases(table, which):
    return [(name, value) for name, columns in table.items() for value in columns[which]]


def test_every_parameter_is_tried_here():
    elsewhere = {"structured_outputs"}  # tests/unit/text/test_grammar.py

    assert {*REALS, *INTEGERS, *FLAGS, *LISTS} | elsewhere == set(SamplingParams.__struct_fields__)


@pytest.mark.parametrize(("name", "value"), cases(REALS, 0) + cases(INTEGERS, 0))
def test_what_makes_sense_is_accepted(name, value):
    check(SamplingParams(**{name: value}), VOCAB_SIZE, MAX_CONTEXT)


@pytest.mark.parametrize(("name", "value"), cases(REALS, 1) + cases(INTEGERS, 1))
def test_what_is_out_of_range_is_refused(name, value):
    refused = refusal_of(**{name: value})

    assert (refused.param, refused.code) == (name, "invalid_value")


@pytest.mark.parametrize("name", REALS)
@pytest.mark.parametrize("value", [NAN, INF, -INF, 10**400])
def test_what_is_not_a_finite_number_is_refused(name, value):
    refused = refusal_of(**{name: value})

    assert (refused.param, refused.code) == (name, "invalid_value")


@pytest.mark.parametrize("name", [*REALS, *INTEGERS, *FLAGS])
@pytest.mark.parametrize("value", ["1", [], {}, (1,), b"1", np.array([1.0, 2.0])])
def test_another_type_is_refused(name, value):
    refused = refusal_of(**{name: value})

    assert (refused.param, refused.code) == (name, "invalid_type")


@pytest.mark.parametrize("name", [*REALS, *INTEGERS])
def test_true_is_no_number(name):
    assert refusal_of(**{name: True}).code == "invalid_type"


@pytest.mark.parametrize("name", list(INTEGERS))
def test_a_fraction_is_no_integer(name):
    assert refusal_of(**{name: 1.5}).code == "invalid_type"


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_is_true_or_false(name):
    check(SamplingParams(**{name: True}), VOCAB_SIZE, MAX_CONTEXT)

    assert refusal_of(**{name: 1}).code == "invalid_type"
    assert refusal_of(**{name: None}).code == "invalid_type"


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in LISTS.items() for v in values])
def test_an_absurd_entry_is_refused(name, value):
    with pytest.raises(InvalidRequestError) as refused:
        check(SamplingParams(**{name: value}), VOCAB_SIZE, MAX_CONTEXT)

    assert refused.value.param == name


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize(
    "value", [1, 1.5, True, [None], [1.5], [True], {"1": 1.0}, {1: "1"}, {1: True}, {1: None}]
)
def test_an_entry_of_another_type_is_refused(name, value):
    refused = refusal_of(**{name: value})

    assert (refused.param, refused.code) == (name, "invalid_type")


def test_full_lists_are_accepted():
    ids = tuple(range(1000)) + (5,) * 24
    params = SamplingParams(
        stop=["é" * 128] * 16,
        bad_words=("a",) * 1024,
        stop_token_ids=ids,
        allowed_token_ids=ids,
        logit_bias={0: 100, 999: -100.0},
    )
    check(params, VOCAB_SIZE, MAX_CONTEXT)
    check(SamplingParams(stop="one string"), VOCAB_SIZE, MAX_CONTEXT)


def test_min_tokens_above_max_tokens_is_refused():
    check(SamplingParams(min_tokens=5, max_tokens=5), VOCAB_SIZE, MAX_CONTEXT)

    assert "6" in str(refusal_of(min_tokens=6, max_tokens=5))


def test_holding_back_every_allowed_token_is_refused():
    allowed = {"allowed_token_ids": (1, 2), "stop_token_ids": (1, 2, 3)}
    check(SamplingParams(**allowed), VOCAB_SIZE, MAX_CONTEXT)

    assert refusal_of(min_tokens=1, **allowed).param == "allowed_token_ids"


def test_a_refusal_says_what_and_why_and_what_to_do():
    expected = "top_p is 2.5; it is the share of the probability that is kept. Choose a value in (0, 1]."

    assert str(refusal_of(top_p=2.5)) == expected
    assert str(refusal_of(n="3")) == "n is '3'; it must be an integer. Pass an integer."


@pytest.mark.parametrize(
    "value",
    [10**5000, "x\n" * 5000, np.zeros((50, 50)), "\x1b[31m\u2028", object()],
    ids=["huge", "long", "array", "terminal codes", "object"],
)
def test_a_refusal_is_one_short_line_whatever_was_sent(value):
    message = str(refusal_of(top_k=value))

    assert message.isprintable()
    assert len(message) < 250


def test_the_first_completion_has_the_seed_itself_and_the_others_their_own():
    assert seeds_of(5, 1) == [5]
    assert seeds_of(-1, 2)[0] == 2**64 - 1
    assert seeds_of(5, 16)[:4] == seeds_of(5, 4)

    everything = [seed for first in range(-100, 100) for seed in seeds_of(first, 16)]
    assert len(set(everything)) == len(everything)
    assert all(0 <= seed < 2**64 for seed in everything)


def test_bad_words_are_spelt_with_and_without_a_space():
    vocabulary = {"no": (1,), " no": (2,), "never ever": (3, 4), " never ever": (5, 4)}
    params = SamplingParams(bad_words=("no", " no", "never ever"))

    assert bad_word_ids(params, vocabulary.__getitem__) == [(1,), (2,), (3, 4), (5, 4)]


def test_a_bad_word_is_banned_only_where_it_would_be_completed():
    words = [(1,), (2, 3), (2, 4, 5), (4, 5)]

    assert banned_now(words, []) == [1]
    assert banned_now(words, [2]) == [1, 3]
    assert banned_now(words, [2, 4]) == [1, 5, 5]
    assert banned_now(words, [4, 2]) == [1, 3]
    assert banned_now([], [4, 2]) == []
