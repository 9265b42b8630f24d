"""Paged attention of every instruction set: one set of bits, near a float64 reference.

The kernels write keys and values (RoPE, rounding, layout) and read them back, so both are under test.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from penstock.kv.codec import CODECS
from penstock.ops.rounding import round_to

native = pytest.importorskip("penstock._native")
ISAS = native.isas()
BLOCK_TOKENS = 64
# fp32: some 150 roundings of 2^-24. The others: probabilities are rounded to 8 bits (2^-9 at most, averaged),
# and where float64 and the kernel round a key to different codes, one step of its scale.
ERROR = {"float32": 2e-6, "bfloat16": 2e-3, "int8": 3e-3}


@dataclass(frozen=True)
class Case:
    """One request of `num_tokens` tokens through one layer's attention."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_tokens: int
    dtype: str = "bfloat16"  # of keys and values
    softcap: float = 0.0
    window: int = 0
    rotary_dim: int | None = None
    qk_norm: bool = False
    is_causal: bool = True
    has_sinks: bool = False
    has_slopes: bool = False

    @property
    def scale(self) -> float:
        return float(np.float32(self.head_dim**-0.5))

    @property
    def block_bytes(self) -> int:
        return self.num_kv_heads * BLOCK_TOKENS * CODECS[self.dtype].bytes_per_token(self.head_dim)

    @property
    def num_blocks(self) -> int:
        return -(-self.num_tokens // BLOCK_TOKENS)


def name(case: Case) -> str:
    parts = [f"h{case.num_heads}of{case.num_kv_heads}", f"d{case.head_dim}", f"t{case.num_tokens}"]
    parts += [case.dtype]
    parts += [f"cap{case.softcap:g}"] if case.softcap else []
    parts += [f"window{case.window}"] if case.window else []
    parts += ["qknorm"] if case.qk_norm else []
    parts += [] if case.is_causal else ["bothways"]
    parts += ["sinks"] if case.has_sinks else []
    parts += ["alibi"] if case.has_slopes else []
    return "-".join(parts)


SHORT = [  # GQA ratios 1, 3, 4, 7, 8; every padding; window and softcap; both contracts
    Case(2, 2, 64, 150),
    Case(4, 1, 64, 150),
    Case(3, 1, 80, 150, softcap=20.0, qk_norm=True),
    Case(7, 1, 96, 150, window=40),
    Case(8, 1, 128, 150, rotary_dim=64),
    Case(2, 1, 256, 70),
    Case(1, 1, 16, 70),
    Case(4, 1, 64, 150, dtype="float32"),
    Case(7, 1, 80, 150, dtype="float32", softcap=20.0, window=33),
    Case(2, 2, 128, 100, dtype="float32", qk_norm=True),
    Case(8, 1, 64, 150, window=40, has_sinks=True, rotary_dim=32),  # gpt-oss
    Case(71, 1, 64, 70, rotary_dim=0, has_slopes=True),  # Falcon, BLOOM
    Case(7, 1, 112, 150, rotary_dim=0, has_slopes=True, has_sinks=True, softcap=20.0),
    Case(2, 2, 192, 70, rotary_dim=64),
    Case(3, 3, 64, 150, is_causal=False),
    Case(4, 1, 80, 150, is_causal=False, window=33),
    Case(5, 1, 48, 150, dtype="float32", has_sinks=True, has_slopes=True, window=70),
    Case(3, 1, 64, 150, dtype="float32", is_causal=False, has_slopes=True),
    Case(4, 1, 64, 150, dtype="int8"),
    Case(7, 1, 112, 150, dtype="int8", softcap=20.0, window=40, qk_norm=True),
    Case(2, 1, 256, 70, dtype="int8", has_sinks=True),
    Case(3, 3, 80, 150, dtype="int8", is_causal=False),
]
STEPWISE = [case for case in SHORT if case.is_causal]
LONG = [  # more than two splits of 512 tokens
    Case(4, 1, 64, 1200),
    Case(7, 1, 128, 1150, window=700),
    Case(3, 1, 64, 1200, dtype="float32", softcap=30.0),
    Case(7, 1, 64, 1150, has_slopes=True, has_sinks=True, rotary_dim=0),
    Case(4, 1, 64, 1200, dtype="int8"),
]
WHOLE = [
    Case(3, 1, 64, 1150, is_causal=False),
    Case(2, 1, 64, 1150, is_causal=False, window=300, dtype="float32"),
]


def make_qkv(case: Case, seed: int = 0) -> np.ndarray:
    width = (case.num_heads + 2 * case.num_kv_heads) * case.head_dim
    qkv = np.random.default_rng(seed).standard_normal((case.num_tokens, width)).astype(np.float32)
    qkv[:, : case.num_heads * case.head_dim] *= 3  # peaked enough that wrong scores show
    return qkv


def norm_weights(case: Case) -> tuple[np.ndarray | None, np.ndarray | None]:
    if not case.qk_norm:
        return None, None
    q_norm, k_norm = np.random.default_rng(9).uniform(0.5, 1.5, (2, case.head_dim)).astype(np.float32)
    return q_norm, k_norm


def sinks(case: Case) -> np.ndarray | None:
    """Near the largest scores, so that they take a good part of the sum; one so low that it takes nothing."""
    logits = np.linspace(-40, 6, case.num_heads).astype(np.float32)[::-1].copy()
    return logits if case.has_sinks else None


def slopes(case: Case) -> np.ndarray | None:
    """Decreasing powers of two, as ALiBi has them."""
    powers = 2.0 ** (-8 * np.arange(1, case.num_heads + 1) / case.num_heads)
    return powers.astype(np.float32) if case.has_slopes else None


def rope_tables(case: Case) -> tuple[np.ndarray, np.ndarray]:
    rotary_dim = case.head_dim if case.rotary_dim is None else case.rotary_dim
    frequency = 10000.0 ** (-np.arange(rotary_dim // 2) / (rotary_dim // 2))
    angle = np.arange(case.num_tokens)[:, None] * frequency
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def poisoned_pool(case: Case, num_blocks: int) -> np.ndarray:
    return np.full(num_blocks * case.block_bytes, 0xFF, np.uint8)  # NaN in bf16 and in fp32


def run(
    isa: str,
    case: Case,
    qkv: np.ndarray,
    *,
    steps: Sequence[int] | None = None,
    row_chunk: int = 1 << 20,
    block_seed: int | None = None,
    pool: np.ndarray | None = None,
) -> np.ndarray:
    """The request in steps of so many tokens, over one pool that begins as NaN."""
    num_blocks = case.num_blocks + 2
    blocks = np.arange(num_blocks, dtype=np.int32)
    if block_seed is not None:
        blocks = np.random.default_rng(block_seed).permutation(blocks)
    table = blocks[None, : case.num_blocks].copy()
    pool = poisoned_pool(case, num_blocks) if pool is None else pool
    cos, sin = rope_tables(case)
    rows, start = [], 0
    for num_tokens in steps or [case.num_tokens]:
        end = start + num_tokens
        rows.append(
            native.test_attention(
                isa, case.dtype, qkv[start:end].copy(), case.num_heads, case.num_kv_heads, case.head_dim,
                np.arange(start, end, dtype=np.int32), np.array([0, num_tokens], np.int32),
                np.array([end], np.int32), table, pool, cos, sin, case.scale, case.softcap, case.window,
                row_chunk, *norm_weights(case), case.is_causal, sinks(case), slopes(case),
            )
        )  # fmt: skip
        start = end
    assert start == case.num_tokens, "steps must cover the request"
    return np.concatenate(rows)


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    half = cos.shape[1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    c, s = cos[:, None, :].astype(np.float64), sin[:, None, :].astype(np.float64)
    return np.concatenate([a * c - b * s, b * c + a * s, rest], axis=-1)


def rms_norm(x: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
    if weight is None:
        return x
    y: np.ndarray = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * weight
    return y


def reference(case: Case, qkv: np.ndarray) -> np.ndarray:
    """Float64, but for what the cache and the queries are rounded to. Knows no splits and no blocks."""
    T, D = case.num_tokens, case.head_dim
    heads = qkv.astype(np.float64).reshape(T, -1, D)
    cos, sin = rope_tables(case)
    q_norm, k_norm = norm_weights(case)
    q = rotate(rms_norm(heads[:, : case.num_heads], q_norm), cos, sin)
    k = rotate(rms_norm(heads[:, case.num_heads : case.num_heads + case.num_kv_heads], k_norm), cos, sin)
    v = heads[:, case.num_heads + case.num_kv_heads :]
    attention = "float32" if case.dtype == "float32" else "bfloat16"
    q, k, v = (
        round_to(x.reshape(T, -1).astype(np.float32), to=to, head_dim=D).reshape(x.shape).astype(np.float64)
        for x, to in ((q, attention), (k, case.dtype), (v, case.dtype))
    )
    group = case.num_heads // case.num_kv_heads
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scores = np.einsum("thd,shd->hts", q, k) * case.scale
    if case.softcap:
        scores = case.softcap * np.tanh(scores / case.softcap)
    distance = np.arange(T)[:, None] - np.arange(T)[None, :]
    if case.has_slopes:
        scores = scores - slopes(case)[:, None, None] * np.abs(distance)
    is_read = ((distance >= 0) | (not case.is_causal)) & (np.abs(distance) < (case.window or T))
    scores = np.where(is_read, scores, -np.inf)
    sink = np.full((case.num_heads, 1, 1), -np.inf) if sinks(case) is None else sinks(case)[:, None, None]
    peak = np.maximum(scores.max(axis=-1, keepdims=True), sink)
    p = np.exp(scores - peak)
    p /= p.sum(axis=-1, keepdims=True) + np.exp(sink - peak)
    y: np.ndarray = np.einsum("hts,shd->thd", p, v).reshape(T, -1)
    return y


def random_steps(num_tokens: int, seed: int) -> list[int]:
    rng = np.random.default_rng(seed)
    steps: list[int] = []
    while (left := num_tokens - sum(steps)) > 0:
        steps.append(min(left, int(rng.choice([1, 1, 2, 5, 31, 64, 100, 333]))))
    return steps


@pytest.fixture
def broken_splits() -> Iterator[None]:
    native.set_break(2)
    yield
    native.set_break(0)


@pytest.mark.parametrize("case", SHORT, ids=name)
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_gives_the_same_bits_near_the_reference(isa: str, case: Case) -> None:
    qkv = make_qkv(case)
    y = run(isa, case, qkv)

    expected = reference(case, qkv)
    error = np.sqrt(np.mean((y - expected) ** 2) / np.mean(expected**2))
    assert error < ERROR[case.dtype]
    assert y.tobytes() == run(ISAS[0], case, qkv).tobytes()


@pytest.mark.parametrize("case", [*LONG, *WHOLE], ids=name)
def test_a_context_of_three_splits_is_near_the_reference(case: Case) -> None:
    qkv = make_qkv(case)
    expected = reference(case, qkv)
    error = np.sqrt(np.mean((run(ISAS[0], case, qkv) - expected) ** 2) / np.mean(expected**2))
    assert error < ERROR[case.dtype]


@pytest.mark.parametrize("case", STEPWISE, ids=name)
@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "scalar"])
def test_one_by_one_and_in_chunks_gives_the_bits_of_the_whole(isa: str, case: Case) -> None:
    qkv = make_qkv(case)
    whole = run(isa, case, qkv)

    assert run(isa, case, qkv, steps=[1] * case.num_tokens).tobytes() == whole.tobytes()
    for seed in range(3):
        steps = random_steps(case.num_tokens, seed)
        assert run(isa, case, qkv, steps=steps, row_chunk=1 + 6 * seed).tobytes() == whole.tobytes()


@pytest.mark.parametrize("case", LONG, ids=name)
def test_chunks_of_a_context_of_three_splits_give_the_bits_of_the_whole(case: Case) -> None:
    qkv = make_qkv(case)
    whole = run(ISAS[0], case, qkv)
    for isa in ISAS:
        if isa != "scalar":
            steps = random_steps(case.num_tokens, seed=1)
            assert run(isa, case, qkv, steps=steps, row_chunk=9).tobytes() == whole.tobytes()


@pytest.mark.parametrize("case", WHOLE, ids=name)
@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "scalar"])
def test_both_ways_a_row_has_the_bits_that_another_division_of_rows_gives(isa: str, case: Case) -> None:
    qkv = make_qkv(case)
    expected = run(ISAS[0], case, qkv)

    for row_chunk in (7, 64, 1000):
        assert run(isa, case, qkv, row_chunk=row_chunk).tobytes() == expected.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("case", LONG, ids=name)
def test_the_scalar_kernels_agree_over_three_splits(case: Case) -> None:
    qkv = make_qkv(case)
    steps = [511, 1, 1, case.num_tokens - 513]
    assert run("scalar", case, qkv, steps=steps).tobytes() == run(ISAS[0], case, qkv).tobytes()


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "scalar"])
def test_bits_do_not_depend_on_how_rows_are_tiled(isa: str) -> None:
    case = Case(7, 1, 64, 600)
    qkv = make_qkv(case)
    whole = run(isa, case, qkv)
    for row_chunk in (1, 2, 3, 4, 5, 9, 64):
        assert run(isa, case, qkv, row_chunk=row_chunk).tobytes() == whole.tobytes()


@pytest.mark.parametrize("dtype", CODECS)
@pytest.mark.parametrize("isa", ISAS)
def test_bits_do_not_depend_on_where_blocks_lie_or_what_they_held(isa: str, dtype: str) -> None:
    case = Case(4, 2, 64, 200, dtype=dtype)
    qkv = make_qkv(case)
    zeros = np.zeros((case.num_blocks + 2) * case.block_bytes, np.uint8)
    clean = run(isa, case, qkv, pool=zeros)
    steps = [70, 1, 1, 100, 28]

    assert np.isfinite(clean).all()
    for block_seed in (1, 2):  # pools of NaN
        assert run(isa, case, qkv, steps=steps, block_seed=block_seed).tobytes() == clean.tobytes()


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "scalar"])
def test_a_request_has_the_same_bits_alone_and_in_a_batch(isa: str) -> None:
    case = Case(4, 1, 64, 130)
    first, second = make_qkv(case, seed=1), make_qkv(case, seed=2)
    cos, sin = rope_tables(case)
    table = np.array([[4, 0, 5], [1, 3, 2]], np.int32)
    together = native.test_attention(
        isa, "bfloat16", np.concatenate([first, second]), 4, 1, 64,
        np.tile(np.arange(130, dtype=np.int32), 2),
        np.array([0, 130, 260], np.int32), np.array([130, 130], np.int32), table, poisoned_pool(case, 6),
        cos, sin, case.scale, 0.0, 0, 16,
    )  # fmt: skip
    assert together[:130].tobytes() == run(isa, case, first).tobytes()
    assert together[130:].tobytes() == run(isa, case, second).tobytes()


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "scalar"])
def test_a_window_wider_than_the_context_is_full_attention(isa: str) -> None:
    full = Case(4, 1, 64, 700)
    qkv = make_qkv(full)
    wide, narrow = replace(full, window=700), replace(full, window=699)

    assert run(isa, wide, qkv).tobytes() == run(isa, full, qkv).tobytes()
    assert run(isa, narrow, qkv)[:699].tobytes() == run(isa, full, qkv)[:699].tobytes()
    assert run(isa, narrow, qkv)[699].tobytes() != run(isa, full, qkv)[699].tobytes()


@pytest.mark.parametrize("isa", ISAS)
def test_a_sink_takes_its_part_of_the_sum(isa: str) -> None:
    case = Case(2, 1, 64, 1, dtype="float32", has_sinks=True)
    qkv = make_qkv(case)
    score = qkv[0, :128].reshape(2, 64).astype(np.float64) @ qkv[0, 128:192] * case.scale
    share = 1 / (1 + np.exp(sinks(case) - score))

    assert np.allclose(run(isa, case, qkv).reshape(2, 64), share[:, None] * qkv[0, 192:], rtol=1e-6)


@pytest.mark.parametrize("isa", ISAS)
def test_one_token_attends_to_itself_only(isa: str) -> None:
    case = Case(2, 1, 64, 1, dtype="float32")
    qkv = make_qkv(case)
    value = qkv[0, 3 * 64 :]
    assert np.array_equal(run(isa, case, qkv)[0], np.tile(value, 2))


@pytest.mark.parametrize("dtype", CODECS)
@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "scalar"])
def test_splits_that_depend_on_the_context_are_noticed(isa: str, dtype: str, broken_splits: None) -> None:
    case = Case(4, 1, 64, 300, dtype=dtype)
    qkv = make_qkv(case)
    assert run(isa, case, qkv, steps=[150, 150]).tobytes() != run(isa, case, qkv).tobytes()
