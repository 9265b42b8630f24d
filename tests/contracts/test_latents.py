"""Attention of latents: the same bits for any division of rows and heads, on every ISA; right in float64.

From the products to what attention sums of the latents: queries out of their parts, norm, rope, the cache of
keys alone, and values that are made of them split by split.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from penstock.kv.codec import BLOCK_TOKENS, CODECS
from penstock.model.program import KVLayer
from penstock.ops.rounding import round_to

native = pytest.importorskip("penstock._native")
from penstock.backends.cpu.lower import block_bytes  # noqa: E402  (needs the native build)

ISAS = native.isas()
QUICK = [isa for isa in ISAS if isa != "scalar"]
ERROR = {"float32": 2e-6, "bfloat16": 2e-3, "int8": 3e-3}  # as those of test_attention.py


@dataclass(frozen=True)
class Case:
    """One request of `num_tokens` tokens through one layer."""

    num_heads: int
    latent_dim: int
    rope_dim: int
    num_tokens: int
    dtype: str = "bfloat16"  # of the cache
    interleaved: bool = True

    @property
    def head_dim(self) -> int:
        return self.latent_dim + self.rope_dim

    @property
    def block_bytes(self) -> int:
        return BLOCK_TOKENS * CODECS[self.dtype].bytes_per_token(self.head_dim, has_values=False)

    def __str__(self) -> str:
        return f"h{self.num_heads}-{self.latent_dim}+{self.rope_dim}-t{self.num_tokens}-{self.dtype}"


SHORT = [
    Case(4, 512, 64, 70),  # DeepSeek's own widths
    Case(3, 32, 8, 150),
    Case(17, 96, 24, 100, interleaved=False),
    Case(5, 40, 6, 130),  # latents that end within a group of 32
    Case(3, 64, 32, 150, dtype="float32"),
    Case(2, 40, 10, 100, dtype="float32", interleaved=False),
    Case(3, 512, 64, 70, dtype="int8"),
    Case(6, 72, 16, 150, dtype="int8"),
]
LONG = [  # more than two splits of 512 tokens
    Case(4, 64, 16, 1150),
    Case(3, 32, 8, 1100, dtype="float32"),
    Case(3, 64, 8, 1100, dtype="int8"),
]
Inputs = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def make_inputs(case: Case, seed: int = 0) -> Inputs:
    """latent, q_latent, q_rope, norm weight."""
    rng = np.random.default_rng(seed)
    shapes = (case.head_dim, case.num_heads * case.latent_dim, case.num_heads * case.rope_dim)
    latent, q_latent, q_rope = (rng.standard_normal((case.num_tokens, w), np.float32) for w in shapes)
    return latent, 2 * q_latent, 2 * q_rope, rng.uniform(0.5, 1.5, case.latent_dim).astype(np.float32)


def rope_tables(case: Case) -> tuple[np.ndarray, np.ndarray]:
    frequency = 10000.0 ** (-np.arange(case.rope_dim // 2) / (case.rope_dim // 2))
    angle = np.arange(case.num_tokens)[:, None] * frequency
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def scale_of(case: Case) -> float:
    return float(np.float32(case.head_dim**-0.5))


def run(
    isa: str,
    case: Case,
    inputs: Inputs,
    *,
    steps: Sequence[int] | None = None,
    row_chunk: int = 1 << 20,
    head_chunk: int = 1 << 10,
    block_seed: int = 0,
    pool: np.ndarray | None = None,
) -> np.ndarray:
    """The request in steps of so many tokens, over a pool that begins as NaN."""
    num_blocks = -(-case.num_tokens // BLOCK_TOKENS)
    table = np.random.default_rng(block_seed).permutation(num_blocks + 2)[None, :num_blocks].astype(np.int32)
    pool = np.full((num_blocks + 2) * case.block_bytes, 0xFF, np.uint8) if pool is None else pool
    *rows, weight = inputs
    out, start = [], 0
    for count in steps or [case.num_tokens]:
        end = start + count
        out.append(
            native.test_latents(
                isa, case.dtype, *(part[start:end].copy() for part in rows), weight, case.num_heads,
                case.latent_dim, case.interleaved, np.arange(start, end, dtype=np.int32),
                np.array([0, count], np.int32), np.array([end], np.int32), table, pool, *rope_tables(case),
                scale_of(case), row_chunk, head_chunk,
            )
        )  # fmt: skip
        start = end
    assert start == case.num_tokens, "steps must cover the request"
    return np.concatenate(out)


def rotate(case: Case, x: np.ndarray) -> np.ndarray:
    """Heads of x[T,h,rope_dim] turned by their positions."""
    c, s = (table.astype(np.float64)[:, None, :] for table in rope_tables(case))
    half = case.rope_dim // 2
    first, second = (
        (slice(0, None, 2), slice(1, None, 2)) if case.interleaved else (slice(half), slice(half, None))
    )
    y = x.copy()
    y[..., first] = x[..., first] * c - x[..., second] * s
    y[..., second] = x[..., second] * c + x[..., first] * s
    return y


def cached(case: Case, inputs: Inputs) -> np.ndarray:
    """What the cache should hold of every token, before it is rounded."""
    latent, _, _, weight = inputs
    low, key = np.split(latent.astype(np.float64), [case.latent_dim], axis=1)
    low = low / np.sqrt(np.mean(low**2, axis=1, keepdims=True) + 1e-6) * weight
    return np.concatenate([low, rotate(case, key[:, None])[:, 0]], axis=1)


def reference(case: Case, inputs: Inputs) -> np.ndarray:
    """Float64, but for what the cache and the queries are rounded to. Knows no splits and no blocks."""
    _, q_latent, q_rope, _ = inputs
    T, H = case.num_tokens, case.num_heads
    turned = rotate(case, q_rope.astype(np.float64).reshape(T, H, -1))
    q = np.concatenate([q_latent.astype(np.float64).reshape(T, H, -1), turned], axis=2)
    attention = "float32" if case.dtype == "float32" else "bfloat16"
    q = round_to(q.reshape(T, -1).astype(np.float32), to=attention).reshape(q.shape).astype(np.float64)
    k = round_to(cached(case, inputs).astype(np.float32), to=case.dtype, head_dim=case.head_dim)
    scores = np.einsum("thd,sd->hts", q, k.astype(np.float64)) * scale_of(case)
    scores = np.where(np.tril(np.ones((T, T), bool)), scores, -np.inf)
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    y: np.ndarray = np.einsum("hts,sd->thd", p, k[:, : case.latent_dim].astype(np.float64))
    return y.reshape(T, -1)


def random_steps(num_tokens: int, seed: int) -> list[int]:
    rng = np.random.default_rng(seed)
    steps: list[int] = []
    while (left := num_tokens - sum(steps)) > 0:
        steps.append(min(left, int(rng.choice([1, 1, 2, 5, 31, 64, 100, 333]))))
    return steps


@pytest.mark.parametrize("case", SHORT, ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_gives_the_same_bits_near_the_reference(isa: str, case: Case) -> None:
    inputs = make_inputs(case)
    y = run(isa, case, inputs)

    expected = reference(case, inputs)
    assert np.sqrt(np.mean((y - expected) ** 2) / np.mean(expected**2)) < ERROR[case.dtype]
    assert y.tobytes() == run(ISAS[0], case, inputs).tobytes()


@pytest.mark.parametrize("case", SHORT, ids=str)
@pytest.mark.parametrize("isa", QUICK)
def test_one_by_one_and_in_chunks_of_rows_and_heads_gives_the_bits_of_the_whole(isa: str, case: Case) -> None:
    inputs = make_inputs(case)
    whole = run(isa, case, inputs)

    assert run(isa, case, inputs, steps=[1] * case.num_tokens, head_chunk=2).tobytes() == whole.tobytes()
    for seed in (1, 2):
        steps = random_steps(case.num_tokens, seed)
        chunks = {"row_chunk": 1 + 6 * seed, "head_chunk": seed, "block_seed": seed}
        assert run(isa, case, inputs, steps=steps, **chunks).tobytes() == whole.tobytes()


@pytest.mark.parametrize("case", LONG, ids=str)
def test_three_splits_are_near_the_reference_and_the_same_in_chunks(case: Case) -> None:
    inputs = make_inputs(case)
    whole, expected = run(ISAS[0], case, inputs), reference(case, inputs)

    assert np.sqrt(np.mean((whole - expected) ** 2) / np.mean(expected**2)) < ERROR[case.dtype]
    for isa in QUICK:
        steps = random_steps(case.num_tokens, seed=1)
        assert run(isa, case, inputs, steps=steps, row_chunk=9).tobytes() == whole.tobytes()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", CODECS)
def test_blocks_hold_the_codecs_bytes_and_no_values(dtype: str, isa: str) -> None:
    case = Case(1, 96, 24, BLOCK_TOKENS, dtype=dtype)
    inputs = make_inputs(case)
    pool = np.full(3 * case.block_bytes, 0xFF, np.uint8)
    run(isa, case, inputs, pool=pool)
    block = int(np.random.default_rng(0).permutation(3)[0])
    held = pool[block * case.block_bytes : (block + 1) * case.block_bytes]
    keys, values = CODECS[dtype].decode(held, case.head_dim)

    assert values is None
    expected = cached(case, inputs)
    assert (
        np.abs(keys - expected).max()
        <= {"float32": 2e-6, "bfloat16": 2**-8, "int8": 0.01}[dtype] * np.abs(expected).max()
    )
    assert (np.delete(pool.reshape(3, -1), block, axis=0) == 0xFF).all()


@pytest.mark.parametrize("isa", QUICK)
def test_splits_that_depend_on_the_context_are_noticed(isa: str) -> None:
    case = Case(4, 64, 16, 300)
    inputs = make_inputs(case)
    native.set_break(2)
    try:
        assert run(isa, case, inputs, steps=[150, 150]).tobytes() != run(isa, case, inputs).tobytes()
    finally:
        native.set_break(0)


@pytest.mark.parametrize(("dtype", "token_bytes"), [("bfloat16", 1152), ("float32", 2304), ("int8", 580)])
def test_a_token_of_deepseek_takes_one_key_of_576_dims_a_layer(dtype: str, token_bytes: int) -> None:
    assert block_bytes(KVLayer(0, 0, 1, 576, dtype, latent_dim=512)) == BLOCK_TOKENS * token_bytes
    assert block_bytes(KVLayer(0, 0, 1, 576, dtype)) == 2 * BLOCK_TOKENS * token_bytes
