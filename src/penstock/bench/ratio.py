"""How sure a ratio of two engines is: medians over pairs of runs, and a bootstrap over the pairs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 4000
TOLERANCE = 0.03  # a bar is met when the lower bound is no more than this under it


@dataclass(frozen=True, slots=True)
class Ratio:
    """`low` and `high`: the 95 % interval of the ratio of medians."""

    ratio: float
    low: float
    high: float
    num_pairs: int

    def meets(self, bar: float) -> bool:
        return self.low >= bar * (1 - TOLERANCE)


def ratio_of(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> Ratio:
    """Median of `ours` over median of `theirs`, which were taken in pairs; pairs are drawn anew together.

    >>> ratio_of([2.0, 2.0], [1.0, 1.0])
    Ratio(ratio=2.0, low=2.0, high=2.0, num_pairs=2)
    """
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert len(a) == len(b) > 0, "a ratio is of pairs"
    draws = np.random.default_rng(seed).integers(len(a), size=(RESAMPLES, len(a)))
    ratios = np.median(a[draws], axis=1) / np.median(b[draws], axis=1)
    low, high = np.percentile(ratios, (2.5, 97.5))
    return Ratio(float(np.median(a) / np.median(b)), float(low), float(high), len(a))
