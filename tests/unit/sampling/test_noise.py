import math

import numpy as np
import pytest

from penstock.sampling.noise import (
    NOISE_HIGH,
    NOISE_LOW,
    PURPOSE_TOKENS,
    gumbel,
    gumbel_of_words,
    philox,
    token_words,
)

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("key", "counter", "words"),
    [  # the known answers published with Random123 (kat_vectors, philox4x32 10)
        ((0, 0), (0, 0, 0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((ONES, ONES), (ONES, ONES, ONES, ONES), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0xA4093822, 0x299F31D0),
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_answers(key, counter, words):
    seed = key[0] | key[1] << 32
    drawn = philox(seed, counter[:2], np.array([counter[2]], np.uint64), counter[3])

    assert [f"{word:08x}" for word in drawn[0]] == words.split()


def test_a_token_takes_its_word_of_its_block():
    words = token_words(seed=7, position=2**33 + 5, vocab_size=200)
    for token in (0, 15, 16, 63, 64, 150, 199):
        block = np.array([token // 64 * 16 + token % 16], np.uint64)

        assert words[token] == philox(7, (5, 2), block, PURPOSE_TOKENS)[0, token // 16 % 4]


@pytest.mark.parametrize("vocab_size", [1, 17, 64, 65, 500])
def test_noise_of_a_token_does_not_depend_on_the_vocabulary(vocab_size):
    assert gumbel(3, 4, vocab_size).tobytes() == gumbel(3, 4, 1000)[:vocab_size].tobytes()


def test_every_seed_and_position_has_its_own_noise():
    drawn = {
        gumbel(seed, position, 8).tobytes() for seed in (0, 1, 2**32, 2**63) for position in (0, 1, 2**32)
    }

    assert len(drawn) == 12


def test_noise_ends_where_the_sampler_prunes():
    low, high = gumbel_of_words(np.array([ONES, 0], np.uint32))

    assert high == pytest.approx(32 * math.log(2), abs=1e-5)
    assert low == pytest.approx(-math.log(24 * math.log(2)), abs=1e-5)
    assert NOISE_HIGH - 1e-5 < high <= NOISE_HIGH
    assert -NOISE_LOW <= low < -NOISE_LOW + 1e-5


def test_noise_never_rises_with_the_word_by_more_than_its_rounding():
    rng = np.random.default_rng(1)
    sizes = 2.0 ** rng.uniform(0, 32, 200_000)
    words = np.sort(np.minimum(sizes, ONES).astype(np.uint32))
    noise = gumbel_of_words(words)

    assert np.max(np.diff(noise)) < 1e-5
    assert noise[0] > 15 > -2 > noise[-1]


def test_noise_is_gumbel_distributed():
    noise = np.sort(gumbel(11, 0, 200_000).astype(np.float64))
    expected = np.exp(-np.exp(-noise))
    observed = (np.arange(len(noise)) + 0.5) / len(noise)

    # Kolmogorov-Smirnov: above 1.63 / sqrt(n) with probability 0.01 (this seed is fixed)
    assert np.abs(expected - observed).max() < 1.63 / math.sqrt(len(noise))


def test_noise_agrees_with_float64():
    words = token_words(5, 6, 100_000)
    v = np.minimum((words | 1).astype(np.float32) * np.float32(2**-32), 1 - 2**-24).astype(np.float64)

    np.testing.assert_allclose(gumbel_of_words(words), -np.log(-np.log1p(-v)), rtol=0, atol=4e-6)
