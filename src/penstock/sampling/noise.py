"""The noise of a token: a pure function of (seed, output position, token id), never of what was drawn before.

So a preempted, replayed, speculated or re-batched request draws the same tokens. native/noise.h gives equal
words and, but for one rounding in 2^29, equal noise. Called by `sampler` and `params.seeds_of`.

Philox4x32-10: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". Key = seed; counter =
(position low, position high, block, purpose). Token t takes word t // 16 % 4 of block t // 64 * 16 + t % 16.
"""

import numpy as np
from numpy.typing import NDArray

from penstock.sampling.elementary import Floats, log, log_reduced, reduce

# `gumbel` lies in [-NOISE_LOW, NOISE_HIGH]: from -ln(24 ln 2) at word 2^32 - 1 to 32 ln 2 at word 0.
NOISE_HIGH = 22.180712
NOISE_LOW = 2.811541

PURPOSE_TOKENS = 0
PURPOSE_SEEDS = 1

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)

Words = NDArray[np.uint32]


def philox(seed: int, counter: tuple[int, int], blocks: NDArray[np.uint64], purpose: int) -> Words:
    """The four words of each block: [len(blocks), 4].

    >>> [hex(word) for word in philox(0, (0, 0), np.zeros(1, np.uint64), 0)[0]]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    keys = [seed & _MASK, seed >> 32 & _MASK]
    low, high = np.uint64(_MASK), np.uint64(32)
    state = [np.full(len(blocks), word, np.uint64) for word in (*counter, 0, purpose)]
    state[2] = blocks & low
    for _ in range(10):
        p, q = state[0] * np.uint64(_MULTIPLIERS[0]), state[2] * np.uint64(_MULTIPLIERS[1])
        state = [
            (q >> high) ^ state[1] ^ np.uint64(keys[0]),
            q & low,
            (p >> high) ^ state[3] ^ np.uint64(keys[1]),
            p & low,
        ]
        keys = [(key + weyl) & _MASK for key, weyl in zip(keys, _WEYL, strict=True)]
    return np.stack(state, axis=1).astype(np.uint32)


def token_words(seed: int, position: int, vocab_size: int) -> Words:
    """The word of every token id below `vocab_size`."""
    groups = -(-vocab_size // 64)
    counter = position & _MASK, position >> 32 & _MASK
    words = philox(seed, counter, np.arange(groups * 16, dtype=np.uint64), PURPOSE_TOKENS)
    return words.reshape(groups, 16, 4).transpose(0, 2, 1).reshape(-1)[:vocab_size]


def gumbel_of_words(words: Words) -> Floats:
    """-ln(-ln(1 - v)), v = (word | 1) / 2^32 in float32 and at most 1 - 2^-24: midpoints of 2^31 cells.

    Large noise comes from small v, where float32 is finest, so that even a token of probability 1e-9 keeps
    its share (u = 1 - v in float32 would cut the tail at 2^-24).
    """
    v = (words | np.uint32(1)).astype(np.float32) * np.float32(2**-32)
    v = np.minimum(v, np.float32(1 - 2**-24))
    m, e = reduce(np.float32(1) - v)
    exponential = -log_reduced(np.where(v < np.float32(0.25), -v, m), e)
    return -log(exponential)


def gumbel(seed: int, position: int, vocab_size: int) -> Floats:
    """The noise of every token id below `vocab_size`, at one output position."""
    return gumbel_of_words(token_words(seed, position, vocab_size))
