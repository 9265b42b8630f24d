"""The simpler models that a card compares with, on texts whose answer is known."""

import math
import random

import numpy as np
import pytest
from tools.train.sources import Document
from tools.train.tokenizer import train_tokenizer

pytest.importorskip("pyppmd")

LINES = [f"value_{number} = compute({number % 7}, name)\n" for number in range(400)]
TRAIN = [Document(f"t{n}", "code", "".join(LINES[n * 40 : n * 40 + 40])) for n in range(10)]
COPY = [Document("copy", "code", TRAIN[4].text)]
CHANCE = random.Random(1)
NOISE = [Document("noise", "code", "".join(chr(CHANCE.randrange(33, 123)) for _ in range(1600)))]


def test_a_text_that_was_seen_costs_less_than_one_that_was_not() -> None:
    from tools.train import baselines

    tokenizer = train_tokenizer(TRAIN, 400)
    for cost in (
        baselines.xz_nats_per_byte,
        baselines.ppmd_nats_per_byte,
        lambda train, test: baselines.kneser_ney_nats_per_byte(tokenizer, train, test),
    ):
        assert cost(TRAIN, COPY) < 0.25 * cost(TRAIN, NOISE)


def test_ppmd_in_one_pass_costs_what_two_compressed_sizes_differ_by() -> None:
    import pyppmd
    from tools.train import baselines

    seen, held_out = "".join(one.text for one in TRAIN).encode(), NOISE[0].text.encode()
    sizes = []
    for data in (seen, seen + held_out):
        encoder = pyppmd.Ppmd7Encoder(16, 1 << 26)
        sizes.append(len(encoder.encode(data) + encoder.flush()))
    nats = (sizes[1] - sizes[0]) * 8 * math.log(2) / len(held_out)

    assert baselines.ppmd_nats_per_byte(TRAIN, NOISE) == pytest.approx(nats, abs=0.05)


def test_kneser_ney_gives_probabilities_that_sum_to_one() -> None:
    from tools.train import baselines

    chance = np.random.default_rng(0)
    stream = chance.integers(0, 12, 3000) % (1 + chance.integers(0, 12, 3000))
    tables = baselines._tables(stream)
    context = list(stream[100:104])
    total = 0.0
    for token in range(12):
        row = np.array([*context, token])
        probability = np.full(5, 1 / 12)
        for order, table in enumerate(tables, start=1):
            probability = table.refined(
                probability, baselines._hashes(row, order), baselines._context_hashes(row, order)
            )
        total += probability[-1]

    assert total == pytest.approx(1.0)
