"""The native sampler on every instruction set against its definition, penstock.sampling.sampler."""

import dataclasses
import math

import numpy as np
import pytest

from penstock.request import SamplingParams
from penstock.sampling.noise import gumbel
from penstock.sampling.rows import RowRequest, make_rows
from penstock.sampling.sampler import sample

_native = pytest.importorskip("penstock._native")
ISAS = _native.isas()
NAMES = ("sampled", "logprob", "rank", "top_token", "top_logprob")
MAX_LOGPROBS = 5


def native(isa, logits, rows, max_logprobs=MAX_LOGPROBS):
    return _native.test_sample(isa, np.ascontiguousarray(logits, np.float32), fields_of(rows), max_logprobs)


def fields_of(rows):
    return {field.name: getattr(rows, field.name) for field in dataclasses.fields(rows)}


def draw(isa, logits, rows):
    return native(isa, logits, rows)["sampled"]


def rows_of(num_rows, vocab_size, *, num_logprobs=-1, target=-1, first=0, **params):
    """The same request at as many output positions."""
    shared = SamplingParams(**params)
    return make_rows(
        [
            RowRequest(shared, seed=42, position=first + i, num_logprobs=num_logprobs, target=target)
            for i in range(num_rows)
        ],
        vocab_size,
    )


SHAPES = {
    "flat": lambda rng, size: rng.standard_normal(size) * 0.01,
    "spread": lambda rng, size: rng.standard_normal(size) * 3,
    "peaked": lambda rng, size: rng.standard_normal(size) * 2 + 15 * (rng.random(size) < 0.01),
    "tied": lambda rng, size: np.round(rng.standard_normal(size) * 4) / 2,
    "holes": lambda rng, size: np.where(rng.random(size) < 0.5, -np.inf, rng.standard_normal(size)),
    "broken": lambda rng, size: rng.choice([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e35, -3e38, 2.5], size),
}


def random_params(rng, vocab_size):
    ids = rng.integers(0, vocab_size, 3).tolist()
    return SamplingParams(
        temperature=rng.choice([0.0, 1e-4, 0.3, 0.7, 1.0, 1.5, 2.0]),
        top_k=int(rng.choice([0, 0, -1, 1, 3, 50, 1000])),
        top_p=rng.choice([1.0, 1.0, 0.999, 0.9, 0.5, 0.1]),
        min_p=rng.choice([0.0, 0.0, 0.01, 0.1, 1.0]),
        typical_p=rng.choice([1.0, 1.0, 0.9, 0.5, 0.2]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.3, 0.5]),
        presence_penalty=rng.choice([0.0, 0.0, 0.7, -2.0]),
        frequency_penalty=rng.choice([0.0, 0.0, 0.3, 2.0]),
        logit_bias=dict.fromkeys(ids, rng.choice([1.5, -100.0])) if rng.random() < 0.3 else None,
        allowed_token_ids=tuple(rng.integers(0, vocab_size, 20).tolist()) if rng.random() < 0.1 else None,
    )


def random_rows(rng, num_rows, vocab_size):
    return make_rows(
        [
            RowRequest(
                random_params(rng, vocab_size),
                seed=int(rng.integers(0, 2**64, dtype=np.uint64)),
                position=int(rng.integers(0, 2**40)),
                prompt_tokens=rng.integers(0, vocab_size, 6).tolist(),
                output_tokens=rng.integers(0, vocab_size, 6).tolist(),
                banned=rng.integers(0, vocab_size, 2).tolist() if rng.random() < 0.2 else (),
                num_logprobs=int(rng.choice([-1, 0, 1, MAX_LOGPROBS])),
                target=int(rng.integers(0, vocab_size)) if rng.random() < 0.1 else -1,
            )
            for _ in range(num_rows)
        ],
        vocab_size,
    )


@pytest.mark.parametrize("vocab_size", [1, 5, 16, 63, 256, 300, 1000, 4097])
@pytest.mark.parametrize("shape", SHAPES)
def test_native_is_its_definition_and_every_isa_gives_the_same_bits(shape, vocab_size):
    rng = np.random.default_rng([*shape.encode(), vocab_size])
    logits = SHAPES[shape](rng, (24, vocab_size)).astype(np.float32)
    rows = random_rows(rng, 24, vocab_size)
    expected = sample(logits, rows, MAX_LOGPROBS)
    for isa in ISAS:
        actual = native(isa, logits, rows)

        assert actual["sampled"].tolist() == expected.sampled.tolist()
        assert actual["rank"].tolist() == expected.rank.tolist()
        assert actual["top_token"].tolist() == expected.top_token.tolist()
        np.testing.assert_allclose(actual["logprob"], expected.logprob, rtol=0, atol=1e-5)
        np.testing.assert_allclose(actual["top_logprob"], expected.top_logprob, rtol=0, atol=1e-5)
        for name in NAMES:
            assert actual[name].tobytes() == native(ISAS[0], logits, rows)[name].tobytes()


@pytest.mark.parametrize("isa", ISAS)
def test_a_row_does_not_see_its_neighbours(isa):
    rng = np.random.default_rng(5)
    logits = SHAPES["spread"](rng, (16, 777)).astype(np.float32)
    requests = [
        RowRequest(random_params(rng, 777), seed=i, position=i, prompt_tokens=[i], num_logprobs=3)
        for i in range(16)
    ]
    together = native(isa, logits, make_rows(requests, 777))
    for i, request in enumerate(requests):
        alone = native(isa, logits[i : i + 1], make_rows([request], 777))
        for name in NAMES:
            assert alone[name][0].tobytes() == together[name][i].tobytes()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", ["flat", "spread", "peaked"])
def test_pruning_never_changes_a_token(isa, shape):
    vocab_size, num_rows = 20_000, 60
    logits = SHAPES[shape](np.random.default_rng(8), (num_rows, vocab_size)).astype(np.float32)
    for temperature in (0.7, 1.0):
        drawn = draw(isa, logits, rows_of(num_rows, vocab_size, temperature=temperature))
        for row, token in enumerate(drawn):
            distance = (logits[row].max() - logits[row]) * (np.float32(1) / np.float32(temperature))
            everything = gumbel(42, row, vocab_size) - distance

            assert token == np.argmax(everything)


@pytest.mark.parametrize("isa", ISAS)
def test_pruning_is_exact_at_its_edge(isa):
    """A token far below the top with much noise wins or loses by 1e-4: less than what pruning rounds by."""
    vocab_size = 20_000
    for position in range(20):
        noise = gumbel(42, position, vocab_size)
        lucky = int(np.argmax(noise))
        top = (lucky + vocab_size // 2) % vocab_size
        for margin, winner in ((1e-4, lucky), (-1e-4, top)):
            logits = np.full(vocab_size, -40, np.float32)
            logits[top] = 0
            logits[lucky] = noise[top] - noise[lucky] + margin

            assert draw(isa, logits[None], rows_of(1, vocab_size, first=position)) == [winner]


# Upper 1 % points of chi-square by Wilson and Hilferty 1931: within 1 % of the table for 3 degrees or more.
def chi_square_limit(degrees):
    return degrees * (1 - 2 / (9 * degrees) + 2.326 * math.sqrt(2 / (9 * degrees))) ** 3


PROBABILITIES = np.array([0.02, 0.3, 0.1, 0.05, 0.2, 0.01, 0.15, 0.04, 0.08, 0.05])


def expected_shares(temperature, top_k, top_p):
    shares = PROBABILITIES ** (1 / temperature)
    order = np.argsort(-shares, kind="stable")[: top_k or None]
    ahead = np.cumsum(shares[order]) - shares[order]
    order = order[ahead < top_p * shares[order].sum()]
    kept = np.zeros_like(shares)
    kept[order] = shares[order] / shares[order].sum()
    return kept


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (6, 1.0), (0, 0.85), (7, 0.9)])
def test_draws_follow_the_distribution(temperature, top_k, top_p):
    """On one instruction set: the others give the same bits."""
    num_draws = 50_000
    logits = np.tile(np.log(PROBABILITIES).astype(np.float32), (num_draws, 1))
    rows = rows_of(num_draws, 10, temperature=temperature, top_k=top_k, top_p=top_p)
    half = num_draws // 2  # half of them over positions, half over seeds
    rows.seed[half:] = np.arange(half)
    counts = np.bincount(draw(ISAS[0], logits, rows), minlength=10)
    shares = expected_shares(temperature, top_k, top_p)
    possible = shares > 0
    expected = shares[possible] * num_draws

    assert counts[~possible].sum() == 0
    statistic = ((counts[possible] - expected) ** 2 / expected).sum()
    assert statistic < chi_square_limit(possible.sum() - 1)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("params", "drawn"),
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"top_k": 3}, {1, 2, 3}),
        ({"top_p": 0.55}, {1, 3}),
        ({"top_p": 0.8}, {1, 2, 3}),
        ({"top_p": 1e-300}, {1}),
        ({"min_p": 0.15}, {1, 2, 3, 4}),
        ({"top_k": 2, "top_p": 0.66}, {1}),
        ({"typical_p": 1e-300}, {3}),  # entropy 1.292, surprises 3.0, 0.69, 2.3, 1.39, 2.3
        ({"typical_p": 0.5}, {1, 3}),
        ({"allowed_token_ids": (0, 4)}, {0, 4}),
        ({"logit_bias": {0: 50.0, 4: 50.0}}, {0, 4}),
        ({"temperature": 0.0}, {1}),
    ],
)
def test_a_cut_draws_all_it_keeps_and_nothing_else(isa, params, drawn):
    logits = np.log([[0.05, 0.5, 0.1, 0.25, 0.1]] * 600)

    assert set(draw(isa, logits, rows_of(600, 5, **params)).tolist()) == drawn


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("params", "prompt", "output", "token"),
    [
        ({}, [0], [0], 0),
        ({"repetition_penalty": 1.5}, [0], [1], 2),  # 3 / 1.5 and 2.5 / 1.5 fall below 2.39
        ({"presence_penalty": 0.7}, [1], [0], 1),  # 3 - 0.7 falls below 2.5
        ({"presence_penalty": 0.7}, [0, 1], [], 0),  # the prompt does not count
        ({"frequency_penalty": 0.3}, [], [0], 0),  # 2.7
        ({"frequency_penalty": 0.3}, [], [0, 0], 1),  # 2.4
        ({"frequency_penalty": 0.31}, [], [0, 1, 0], 2),  # 2.38, 2.19, 2.39
        ({"logit_bias": {3: 4.1}}, [], [], 3),
        ({"logit_bias": {3: 3.9}}, [], [], 0),
    ],
)
def test_penalties_move_the_argmax_as_worked_out(isa, params, prompt, output, token):
    logits = np.array([[3, 2.5, 2.39, -1]], np.float32)
    request = RowRequest(
        SamplingParams(temperature=0.0, **params),
        seed=0,
        position=len(output),
        prompt_tokens=prompt,
        output_tokens=output,
    )

    assert draw(isa, logits, make_rows([request], 4)) == [token]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("vocab_size", [pytest.param(151_936, marks=pytest.mark.slow), 128_256])
def test_a_real_vocabulary_agrees_with_the_definition(isa, vocab_size):
    rng = np.random.default_rng(3)
    logits = np.stack([SHAPES[shape](rng, vocab_size) for shape in ("flat", "spread", "peaked")]).astype("f4")
    for params in ({}, {"top_k": 50, "top_p": 0.95}, {"top_p": 0.9}, {"min_p": 0.05, "temperature": 0.7}):
        rows = rows_of(3, vocab_size, num_logprobs=4, **params)
        expected, actual = sample(logits, rows, 4), native(isa, logits, rows, 4)

        assert actual["sampled"].tolist() == expected.sampled.tolist()
        assert actual["top_token"].tolist() == expected.top_token.tolist()
        np.testing.assert_allclose(actual["logprob"], expected.logprob, rtol=0, atol=1e-5)
