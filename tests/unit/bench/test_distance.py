"""Distances of logits against the formulas, by hand."""

import numpy as np
import pytest

from penstock.bench.distance import distance


def test_equal_logits_and_shifted_ones_are_no_distance():
    x = np.random.default_rng(0).standard_normal((5, 30), np.float32)
    found = distance(x + np.float32(3), x)

    assert found["top1"] == 1
    assert found["kl_max"] == pytest.approx(0, abs=1e-9)
    assert found["rms"] == pytest.approx(0, abs=1e-6)


def test_kl_is_from_the_truth_and_the_largest_row_shows():
    truth = np.log(np.array([[0.2, 0.8], [0.5, 0.5]], np.float32))
    ours = np.log(np.array([[0.2, 0.8], [0.9, 0.1]], np.float32))
    expected = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
    found = distance(ours, truth)

    assert found["kl_max"] == pytest.approx(expected, rel=1e-5)
    assert found["kl_mean"] == pytest.approx(expected / 2, rel=1e-5)
    assert found["max_error"] == pytest.approx(np.log(9) / 2, rel=1e-5)
    assert found["rows"] == 2


def test_top_1_counts_rows():
    truth = np.eye(4, dtype=np.float32)

    assert distance(np.roll(truth, 1, axis=1) + truth * 2, truth)["top1"] == 1
    assert distance(np.roll(truth, 1, axis=1), truth)["top1"] == 0
