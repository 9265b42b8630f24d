"""Every KV codec keeps the promises of penstock.kv.codec.KVCodec, and native blocks hold its bytes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from penstock.kv.codec import BLOCK_TOKENS, CODECS
from penstock.ops.rounding import round_to

HEAD_DIMS = [16, 64, 80, 128, 256]


def random_rows(head_dim, seed=0):
    """Keys and values of very different sizes, with a row of zeros and a row of denormals."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((2, BLOCK_TOKENS, head_dim)) * 10.0 ** rng.integers(
        -3, 4, (2, BLOCK_TOKENS, 1)
    )
    rows[:, 5] = 0
    rows[:, 6] = 1e-40
    return rows.astype(np.float32)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("name", CODECS)
def test_what_comes_back_is_what_the_program_rounds_to(name, head_dim):
    keys, values = random_rows(head_dim)
    block = CODECS[name].encode(keys, values)

    assert block.nbytes == BLOCK_TOKENS * CODECS[name].bytes_per_token(head_dim)
    for rows, back in zip((keys, values), CODECS[name].decode(block, head_dim), strict=True):
        assert back.tobytes() == round_to(rows, to=name, head_dim=head_dim).tobytes()


@pytest.mark.parametrize("head_dim", [*HEAD_DIMS, 576])
@pytest.mark.parametrize("name", CODECS)
def test_latents_are_keys_alone(name, head_dim):
    keys, values = random_rows(head_dim)
    block = CODECS[name].encode(keys, None)
    back, none = CODECS[name].decode(block, head_dim)

    assert none is None
    assert back.tobytes() == CODECS[name].decode(CODECS[name].encode(keys, values), head_dim)[0].tobytes()
    token_bytes = CODECS[name].bytes_per_token(head_dim, has_values=False)
    assert block.nbytes == BLOCK_TOKENS * token_bytes
    assert 2 * token_bytes == CODECS[name].bytes_per_token(head_dim)


@pytest.mark.parametrize("name", [name for name in CODECS if CODECS[name].exact])
def test_an_exact_one_keeps_what_its_attention_computes_with(name):
    rows = random_rows(64)
    keys, values = (round_to(x, to=name) for x in rows)

    assert [x.tobytes() for x in CODECS[name].decode(CODECS[name].encode(keys, values), 64)] == [
        keys.tobytes(),
        values.tobytes(),
    ]


@pytest.mark.parametrize("name", CODECS)
@given(
    token=st.integers(0, BLOCK_TOKENS - 1), row=arrays(np.float32, 32, elements=st.floats(-9, 9, width=32))
)
def test_a_tokens_bytes_depend_on_that_token_alone(name, token, row):
    """Changing one token changes no byte that another token's change can change."""
    keys, values = np.ones((2, BLOCK_TOKENS, 32), np.float32)
    before = CODECS[name].encode(keys, values)
    keys[token], values[token] = row, -row
    after = CODECS[name].encode(keys, values)
    again_k, again_v = CODECS[name].decode(after, 32)
    others = [t for t in range(BLOCK_TOKENS) if t != token]

    assert np.count_nonzero(before != after) <= CODECS[name].bytes_per_token(32)
    assert (again_k[others] == again_k[others[0]]).all()
    assert (again_v[others] == again_v[others[0]]).all()


def test_int8_errs_by_half_a_step_of_its_scale():
    keys, values = random_rows(128)
    for rows, back in zip(
        (keys, values), CODECS["int8"].decode(CODECS["int8"].encode(keys, values), 128), strict=True
    ):
        step = np.abs(rows).max(axis=1, keepdims=True) / 127

        assert (np.abs(rows - back) <= 0.5001 * step + 1e-37).all()


def test_int8_halves_a_block():
    for head_dim in (64, 128):
        assert CODECS["int8"].bytes_per_token(head_dim) <= 0.54 * CODECS["bfloat16"].bytes_per_token(head_dim)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("name", CODECS)
def test_native_blocks_hold_the_codecs_bytes(name, head_dim):
    native = pytest.importorskip("penstock._native")
    keys, values = random_rows(head_dim)
    size = BLOCK_TOKENS * CODECS[name].bytes_per_token(head_dim)
    expected = [CODECS[name].encode(keys, values), CODECS[name].encode(values, keys)]
    for isa in native.isas():
        pool = np.full(2 * size, 0xFF, np.uint8)  # one block, two KV heads
        queries = np.zeros((BLOCK_TOKENS, 2 * head_dim), np.float32)
        native.test_attention(
            isa, name, np.concatenate([queries, keys, values, values, keys], axis=1), 2, 2, head_dim,
            np.arange(BLOCK_TOKENS, dtype=np.int32), np.array([0, BLOCK_TOKENS], np.int32),
            np.array([BLOCK_TOKENS], np.int32), np.zeros((1, 1), np.int32), pool,
            np.zeros((BLOCK_TOKENS, 0), np.float32), np.zeros((BLOCK_TOKENS, 0), np.float32), 1.0, 0.0, 0, 64,
        )  # fmt: skip

        assert pool[:size].tobytes() == expected[0].tobytes(), isa
        assert pool[size:].tobytes() == expected[1].tobytes(), isa
