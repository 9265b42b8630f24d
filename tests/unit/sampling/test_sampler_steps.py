"""Each step of the definition on numbers worked out by hand; logits are the ln of chosen probabilities."""

import numpy as np
import pytest

from penstock.request import SamplingParams
from penstock.sampling.noise import gumbel
from penstock.sampling.rows import RowRequest, make_rows
from penstock.sampling.sampler import clean, keep, log_softmax, process, sample

INF = np.inf


def logits_of(*probabilities):
    return np.log(np.array(probabilities)).astype(np.float32)


def kept_of(probabilities, **params):
    x = logits_of(*probabilities)
    kept = keep(x.max() - x, rows_of(len(x), **params), 0)
    return np.flatnonzero(kept).tolist()


def rows_of(vocab_size, *, prompt=(), output=(), banned=(), target=-1, num_logprobs=-1, **params):
    request = RowRequest(
        SamplingParams(**params),
        seed=1,
        position=len(output),
        prompt_tokens=prompt,
        output_tokens=output,
        banned=banned,
        target=target,
        num_logprobs=num_logprobs,
    )
    return make_rows([request], vocab_size)


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"top_k": 2}, [1, 3]),
        ({"top_k": 3}, [1, 2, 3]),  # 0.1 of token 2 wins over 0.1 of token 4: the lower index
        ({"top_k": 99}, [0, 1, 2, 3, 4]),
        ({"top_k": -1}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.4}, [1]),  # 0.5 before the second
        ({"top_p": 0.55}, [1, 3]),
        ({"top_p": 0.8}, [1, 2, 3]),  # 0.75 before the third, 0.85 before the fourth
        ({"top_p": 0.9}, [1, 2, 3, 4]),
        ({"top_p": 1e-9}, [1]),
        ({"min_p": 0.4}, [1, 3]),  # 0.5 * 0.4 = 0.2
        ({"min_p": 0.15}, [1, 2, 3, 4]),  # 0.075
        ({"min_p": 1.0}, [1]),
        ({"top_k": 2, "top_p": 0.66}, [1]),  # of the two, the first holds 2/3
        ({"top_k": 2, "top_p": 0.67}, [1, 3]),
        ({"top_p": 0.8, "min_p": 0.4}, [1, 3]),
    ],
)
def test_a_cut_keeps_what_its_definition_says(params, kept):
    assert kept_of((0.05, 0.5, 0.1, 0.25, 0.1), **params) == kept


def test_equal_tokens_are_cut_from_the_highest_index():
    assert kept_of((0.25, 0.25, 0.25, 0.25), top_k=3) == [0, 1, 2]
    assert kept_of((0.25, 0.25, 0.25, 0.25), top_p=0.5) == [0, 1]
    assert kept_of((0.25, 0.25, 0.25, 0.25), min_p=1.0) == [0, 1, 2, 3]
    assert kept_of((0.25, 0.25, 0.25, 0.25), typical_p=0.5) == [0, 1]


def test_typical_keeps_the_tokens_of_average_surprise():
    # entropy 1.2799; surprises 0.693, 2.303, 1.204, 2.303: off by 0.587, 1.023, 0.076, 1.023
    probabilities = (0.5, 0.1, 0.3, 0.1)

    assert kept_of(probabilities, typical_p=0.2) == [2]  # not the most likely one
    assert kept_of(probabilities, typical_p=0.5) == [0, 2]
    assert kept_of(probabilities, typical_p=0.85) == [0, 1, 2]
    assert kept_of(probabilities, typical_p=0.95) == [0, 1, 2, 3]


def test_a_share_too_small_for_float32_keeps_the_first():
    assert kept_of((0.2, 0.5, 0.3), top_p=1e-300) == [1]
    assert kept_of((0.2, 0.5, 0.3), typical_p=1e-300) == [2]


def test_typical_looks_at_what_the_other_cuts_left():
    # of (0.5, 0.3): shares 0.625 and 0.375, entropy 0.6616, surprises 0.470 and 0.981: off by 0.192, 0.319
    assert kept_of((0.5, 0.1, 0.3, 0.1), top_k=2, typical_p=0.2) == [0]


def test_repetition_penalty_divides_or_multiplies_by_sign():
    x = np.array([2, -2, 4, -4], np.float32)
    w = process(x, rows_of(4, prompt=[0, 1], output=[1], repetition_penalty=2.0), 0)

    assert w.tolist() == [1, -4, 4, -4]


def test_presence_counts_once_and_frequency_each_time_in_the_output_alone():
    x = np.zeros(4, np.float32)
    rows = rows_of(4, prompt=[0], output=[1, 2, 2, 2], presence_penalty=0.5, frequency_penalty=0.25)

    assert process(x, rows, 0).tolist() == [0, -0.75, -1.25, 0]


def test_bias_comes_after_the_penalties_and_bans_come_last():
    x = np.array([4, 4, 4, 4], np.float32)
    rows = rows_of(4, prompt=[0], banned=[2], repetition_penalty=2.0, logit_bias={0: 1.5, 2: 100.0, 3: -1.0})

    assert process(x, rows, 0).tolist() == [3.5, 4, -INF, 3]


def test_what_is_not_allowed_is_never_drawn():
    x = np.arange(70, dtype=np.float32)
    w = process(x, rows_of(70, allowed_token_ids=(3, 64)), 0)

    assert np.flatnonzero(w > -INF).tolist() == [3, 64]
    assert sample(x[None], rows_of(70, allowed_token_ids=(3, 64), temperature=0)).sampled == [64]


def test_temperature_zero_is_argmax_with_ties_to_the_lowest_index():
    x = np.array([[1, 3, 3, 2]], np.float32)
    for temperature in (0.0, -0.0, 1e-45, 9.9e-6):
        assert sample(x, rows_of(4, temperature=temperature)).sampled == [1]


def test_a_draw_is_the_argmax_of_logits_plus_noise():
    x = np.array([[0.5, -1, 2, 0, 1]], np.float32)
    drawn = sample(x, rows_of(5, output=[4, 4, 4], temperature=0.5)).sampled

    assert drawn == [np.argmax(x[0] / 0.5 + gumbel(1, 3, 5))]


def test_logprobs_are_those_of_the_raw_logits():
    x = np.log(np.array([[1, 4, 2, 1]])).astype(np.float32)
    output = sample(x, rows_of(4, temperature=0, banned=[1], logit_bias={3: 50.0}, num_logprobs=3))

    assert output.sampled == [3]
    np.testing.assert_allclose(output.logprob, np.log([1 / 8]), atol=1e-6)
    assert output.rank == [4]  # token 0 is as likely and comes first
    assert output.top_token.tolist() == [[1, 2, 0]]
    np.testing.assert_allclose(output.top_logprob[0], np.log([4 / 8, 2 / 8, 1 / 8]), atol=1e-6)


def test_a_target_is_scored_and_not_drawn():
    output = sample(logits_of(0.5, 0.3, 0.2)[None], rows_of(3, target=2, num_logprobs=0))

    assert (output.sampled, output.rank) == ([2], [3])
    assert output.logprob[0] == pytest.approx(np.log(0.2), abs=1e-6)
    assert output.top_token.shape == (1, 0)


def test_nothing_is_reported_where_nothing_was_asked():
    output = sample(logits_of(0.5, 0.5)[None], rows_of(2), max_logprobs=2)

    assert np.isnan(output.logprob[0])
    assert output.rank == [0]
    assert output.top_token.tolist() == [[-1, -1]]
    assert np.isnan(output.top_logprob).all()


def test_broken_logits_still_give_a_token():
    nan = np.full((1, 40), np.nan, np.float32)

    assert sample(nan, rows_of(40, num_logprobs=1)).sampled == [0]
    assert sample(nan, rows_of(40, banned=[0, 1])).sampled == [2]
    assert sample(nan, rows_of(40, banned=[33], allowed_token_ids=(33, 35))).sampled == [35]
    assert sample(nan, rows_of(40, banned=[33], allowed_token_ids=(33,))).sampled == [33]


def test_numbers_beyond_reason_are_brought_back():
    x = np.array([np.nan, -1e38, INF, 3e38, 1, -INF], np.float32)
    cleaned = clean(x)

    assert cleaned.tolist() == [-INF, -INF, np.float32(1e30), np.float32(1e30), 1, -INF]
    assert log_softmax(cleaned)[2:4] == pytest.approx(np.log([0.5, 0.5]))
