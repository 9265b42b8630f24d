"""Attention and rope, against formulas written differently and in float64."""

import numpy as np
import pytest

from penstock.ops.attention import KVBlocks, attention, kv_write
from penstock.ops.rope import rope

HEADS = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8}
SCALE = 8**-0.5
CAUSAL = (None, None, None, None)  # no tree, not both ways, no sinks, no ALiBi


def filled(
    num_tokens: int, block_size: int, seed: int = 0
) -> tuple[KVBlocks, np.ndarray, np.ndarray, np.ndarray]:
    """A cache that holds one request in shuffled blocks; also its keys, values and block table."""
    rng = np.random.default_rng(seed)
    num_blocks = -(-num_tokens // block_size)
    shape = (num_blocks + 3, block_size, 16)
    kv = KVBlocks(np.full(shape, 7.0, np.float32), np.full(shape, 9.0, np.float32))  # leftovers of others
    table = rng.permutation(num_blocks + 3)[:num_blocks].reshape(1, -1).astype(np.int32)
    k, v = (rng.standard_normal((num_tokens, 16), np.float32) for _ in range(2))
    kv_write(k, v, kv, np.arange(num_tokens), np.zeros(num_tokens, np.int32), table)
    return kv, k, v, table


def expected(q, k, v, position, *, window=None, softcap=None):
    """One row in float64, head by head."""
    first = 0 if window is None else max(0, position - window + 1)
    out = []
    for head in range(4):
        columns = slice(head // 2 * 8, head // 2 * 8 + 8)
        keys, values = (a[first : position + 1, columns].astype(np.float64) for a in (k, v))
        scores = keys @ q[head * 8 : head * 8 + 8].astype(np.float64) * SCALE
        if softcap is not None:
            scores = softcap * np.tanh(scores / softcap)
        weights = np.exp(scores - scores.max())
        out.append(weights @ values / weights.sum())
    return np.concatenate(out)


@pytest.mark.parametrize("block_size", [1, 5, 64])
@pytest.mark.parametrize(
    ("position", "window", "softcap"),
    [
        (0, None, None),
        (20, None, None),
        (20, 4, None),
        (20, 21, None),
        (20, None, 1.5),
        (1300, None, None),
        (1300, 700, 3.0),
    ],
)
def test_a_row_is_softmax_over_what_it_may_see(block_size, position, window, softcap):
    if block_size == 1 and position > 100:
        block_size = 16
    kv, k, v, table = filled(position + 3, block_size)
    q = np.random.default_rng(1).standard_normal((1, 32), np.float32)
    attrs = HEADS | {"scale": SCALE, "window": window, "softcap": softcap, "to": "float32"}
    y = attention(q, kv, np.array([position]), np.array([0]), table, *CAUSAL, **attrs)

    assert np.allclose(
        y[0], expected(q[0], k, v, position, window=window, softcap=softcap), rtol=1e-5, atol=1e-6
    )


def test_rounded_probabilities_still_sum_to_one():
    kv, _, _, table = filled(700, 64)
    kv.values[:] = 1.0
    q = np.random.default_rng(1).standard_normal((1, 32), np.float32)
    attrs = HEADS | {"scale": SCALE, "window": None, "softcap": None, "to": "bfloat16"}
    y = attention(q, kv, np.array([699]), np.array([0]), table, *CAUSAL, **attrs)

    assert np.allclose(y, 1.0, atol=1e-6)


def softmax_rows(q, k, v, position, *, tokens, sinks=(-np.inf,) * 4, slopes=(0,) * 4):
    """Head by head over `tokens`, in float64."""
    out = []
    for head in range(4):
        columns = slice(head // 2 * 8, head // 2 * 8 + 8)
        keys, values = (a[tokens][:, columns].astype(np.float64) for a in (k, v))
        scores = keys @ q[head * 8 : head * 8 + 8] * SCALE - slopes[head] * np.abs(tokens - position)
        weights = np.exp(scores)
        out.append(weights @ values / (weights.sum() + np.exp(sinks[head])))
    return np.concatenate(out)


@pytest.mark.parametrize("window", [None, 4, 30])
def test_both_ways_a_row_sees_what_comes_after_it(window):
    kv, k, v, table = filled(21, 5)
    q = np.random.default_rng(1).standard_normal((1, 32), np.float32)
    attrs = HEADS | {"scale": SCALE, "window": window, "softcap": None, "to": "float32"}
    y = attention(q, kv, np.array([9]), np.array([0]), table, None, np.array([20]), None, None, **attrs)
    tokens = np.arange(20) if window != 4 else np.arange(6, 13)

    assert np.allclose(y[0], softmax_rows(q[0], k, v, 9, tokens=tokens), rtol=1e-5, atol=1e-6)


def test_sinks_and_slopes_of_every_head():
    kv, k, v, table = filled(1300, 64)
    q = np.random.default_rng(1).standard_normal((1, 32), np.float32)
    sinks, slopes = np.array([-9, 0, 5, 20], np.float32), np.array([0.5, 0.1, 0.01, 0], np.float32)
    attrs = HEADS | {"scale": SCALE, "window": None, "softcap": None, "to": "float32"}
    y = attention(q, kv, np.array([1200]), np.array([0]), table, None, None, sinks, slopes, **attrs)
    expected = softmax_rows(q[0], k, v, 1200, tokens=np.arange(1201), sinks=sinks, slopes=slopes)

    assert np.allclose(y[0], expected, rtol=1e-4, atol=1e-6)


def test_where_the_blocks_lie_does_not_matter():
    outputs = []
    for seed in (0, 1):
        kv, k, v, _ = filled(40, 4, seed=0)
        table = np.random.default_rng(seed).permutation(13)[:10].reshape(1, -1)
        kv_write(k, v, kv, np.arange(40), np.zeros(40, np.int32), table)
        q = np.ones((1, 32), np.float32)
        attrs = HEADS | {"scale": SCALE, "window": None, "softcap": None, "to": "bfloat16"}
        outputs.append(attention(q, kv, np.array([39]), np.array([0]), table, *CAUSAL, **attrs).tobytes())

    assert outputs[0] == outputs[1]


def test_rope_turns_pairs_and_leaves_the_rest_of_a_partial_rotation():
    angle = np.array([[0.0, 0.0], [0.3, 1.1]])
    x = np.arange(1.0, 9.0, dtype=np.float32).reshape(1, 8)
    y = rope(x, np.array([1]), np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32), head_dim=8)
    turned = [(x[0, i] + 1j * x[0, i + 2]) * np.exp(1j * angle[1, i]) for i in range(2)]

    assert y[0, :4].tolist() == pytest.approx(
        [turned[0].real, turned[1].real, turned[0].imag, turned[1].imag]
    )
    assert y[0, 4:].tolist() == [5, 6, 7, 8]


def test_position_zero_is_not_turned():
    x = np.random.default_rng(0).standard_normal((1, 32), np.float32)

    assert rope(
        x, np.array([0]), np.ones((1, 4), np.float32), np.zeros((1, 4), np.float32), head_dim=8
    ).tobytes() == (x.tobytes())
