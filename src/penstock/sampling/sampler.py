"""From logits to tokens, in numpy and obviously right: the definition native/kernels/sampler.cpp follows.

Called by the reference executor; the contract test holds the native sampler against it. Row by row, so no row
sees another. Gumbel-max: the argmax of log p + noise is a draw from p (Gumbel 1954; Maddison et al. 2014,
arXiv:1411.0030). Refuses nothing: parameters were checked at admission, NaN logits count as -inf.
"""

import numpy as np
from numpy.typing import NDArray

from penstock.sampling.elementary import Floats, exp, log
from penstock.sampling.noise import gumbel
from penstock.step import SamplingRows, StepOutput

Bools = NDArray[np.bool_]

GREEDY_BELOW = np.float32(1e-5)
CEILING = np.float32(1e30)  # beyond it no quotient or difference below could overflow
MASSLESS = np.float32(28)  # e^-28 < 2^-40: no mass; and beyond the range of the noise, 25: never drawn


def sample(logits: Floats, rows: SamplingRows, max_logprobs: int | None = None) -> StepOutput:
    """Draw (or score) one token for each row of logits[R,V].

    `top_token` and `top_logprob` have `max_logprobs` columns; None: as many as the rows ask for.
    """
    num_rows = len(logits)
    if max_logprobs is None:
        max_logprobs = max(0, int(rows.num_logprobs.max(initial=0)))
    sampled = np.zeros(num_rows, np.int32)
    logprob = np.full(num_rows, np.nan, np.float32)
    rank = np.zeros(num_rows, np.int32)
    top_token = np.full((num_rows, max_logprobs), -1, np.int32)
    top_logprob = np.full((num_rows, max_logprobs), np.nan, np.float32)
    for r in range(num_rows):
        x = clean(logits[r])
        sampled[r] = rows.target[r] if rows.target[r] >= 0 else draw(x, rows, r)
        if rows.num_logprobs[r] < 0:
            continue
        logprobs = log_softmax(x)
        order = np.argsort(-x, kind="stable")  # by logit, then by index
        logprob[r] = logprobs[sampled[r]]
        rank[r] = 1 + int(np.flatnonzero(order == sampled[r])[0])
        top = order[: min(rows.num_logprobs[r], max_logprobs)]
        top_token[r, : len(top)] = top
        top_logprob[r, : len(top)] = logprobs[top]
    return StepOutput(sampled, logprob, rank, top_token, top_logprob)


def clean(x: Floats) -> Floats:
    """NaN and what is below -1e30 become -inf, what is above 1e30 becomes 1e30."""
    return np.where(x >= -CEILING, np.minimum(x, CEILING), np.float32(-np.inf)).astype(np.float32)


def mass(distance: Floats) -> NDArray[np.int64]:
    """e^-distance in units of 2^-40, cut to an integer, so that sums are exact in any order."""
    return (exp(-np.minimum(distance, MASSLESS + 1)) * np.float32(2**40)).astype(np.int64)


def log_softmax(x: Floats) -> Floats:
    """Log probabilities of cleaned logits; all -inf where no logit is above -inf."""
    highest = x.max()
    if highest == -np.inf:
        return x
    total = np.asarray(float(mass(highest - x).sum()) * 2.0**-40, np.float32)
    return np.asarray((x - highest) - log(total), np.float32)


def draw(x: Floats, rows: SamplingRows, r: int) -> int:
    """The token of row r: argmax of noise - distance among those the cuts keep, ties to the lowest index."""
    w = process(x, rows, r)
    if w.max() == -np.inf:
        return _lowest_allowed(len(w), rows, r)
    temperature = rows.temperature[r]
    if not temperature >= GREEDY_BELOW:
        return int(np.argmax(w))
    distance = (w.max() - w) * (np.float32(1) / temperature)
    kept = keep(distance, rows, r)
    noise = gumbel(int(rows.seed[r]), int(rows.position[r]), len(w))
    return int(np.argmax(np.where(kept, noise - distance, np.float32(-np.inf))))


def process(x: Floats, rows: SamplingRows, r: int) -> Floats:
    """Penalties (Keskar et al. 2019, arXiv:1909.05858, and OpenAI's two), bias, mask, in this order."""
    w = x.copy()
    seen = slice(rows.history_start[r], rows.history_start[r + 1])
    tokens, counts = rows.history_token[seen], rows.history_count[seen]
    y = w[tokens]
    y = np.where(y > 0, y / rows.repetition_penalty[r], y * rows.repetition_penalty[r])
    y = y - rows.frequency_penalty[r] * counts.astype(np.float32)
    w[tokens] = clean(y - np.where(counts > 0, rows.presence_penalty[r], np.float32(0)))
    for i in range(rows.bias_start[r], rows.bias_start[r + 1]):
        token = rows.bias_token[i]
        w[token : token + 1] = clean(w[token : token + 1] + rows.bias_value[i])
    if rows.allowed is not None:
        w[~_is_allowed(len(w), rows, r)] = -np.inf
    return w


def keep(distance: Floats, rows: SamplingRows, r: int) -> Bools:
    """The cuts, in this order, each over what the one before left; the first in its order always stays.

    top-k: the first k by (distance, index). top-p: those with less than top_p of the mass before them in that
    order (Holtzman et al. 2019, arXiv:1904.09751). min-p: probability at least min_p of the highest
    (Nguyen et al. 2024, arXiv:2407.01082). typical-p: by (|surprise - entropy|, index), those with less
    than typical_p of the mass before them (Meister et al. 2022, arXiv:2202.00666).
    """
    order = np.argsort(distance, kind="stable")
    order = order[distance[order] <= MASSLESS]
    if rows.top_k[r] > 0:
        order = order[: rows.top_k[r]]
    if rows.top_p[r] < 1:
        order = _first_share(order, distance, float(rows.top_p[r]))
    if rows.min_p[r] > 0:
        order = order[distance[order] <= -log(rows.min_p[r])]
    if rows.typical_p[r] < 1:
        order = np.sort(order)
        # -ln p - entropy = distance - mean distance: the normaliser cancels
        p, d = exp(-distance[order]).astype(np.float64), distance[order].astype(np.float64)
        mean = np.float32(np.cumsum(p * d)[-1] / np.cumsum(p)[-1])
        surprise = np.abs(distance[order] - mean)
        order = _first_share(order[np.argsort(surprise, kind="stable")], distance, float(rows.typical_p[r]))
    kept = np.zeros(len(distance), np.bool_)
    kept[order] = True
    return kept


def _first_share(order: NDArray[np.intp], distance: Floats, share: float) -> NDArray[np.intp]:
    masses = mass(distance[order])
    before = np.cumsum(masses) - masses
    kept = before.astype(np.float64) < share * float(masses.sum())
    kept[:1] = True  # a share may be 0 in float32
    return order[kept]


def _is_allowed(vocab_size: int, rows: SamplingRows, r: int) -> Bools:
    assert rows.allowed is not None, "asked only where there is a mask"
    little = rows.allowed[r].astype("<u4").view(np.uint8)
    return np.unpackbits(little, bitorder="little")[:vocab_size].astype(np.bool_)


def _lowest_allowed(vocab_size: int, rows: SamplingRows, r: int) -> int:
    """Where all is -inf: the lowest id neither mask nor bias forbids, else the mask's lowest, else 0."""
    allowed = np.ones(vocab_size, np.bool_) if rows.allowed is None else _is_allowed(vocab_size, rows, r)
    banned = slice(rows.bias_start[r], rows.bias_start[r + 1])
    free = allowed.copy()
    free[rows.bias_token[banned][rows.bias_value[banned] == -np.inf]] = False
    return int(np.argmax(free)) if free.any() else int(np.argmax(allowed))
