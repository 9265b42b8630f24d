"""The INT linears keep their contract: one set of bits on every ISA, for any number of rows.

The contract is restated here in int64, and in long double where one rounding to float32 is what an FMA does.
"""

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from penstock.weights.coding import PARTS, CodedRows
from penstock.weights.format import FORMATS, round_up

native = pytest.importorskip("penstock._native", reason="this build has no native backend")

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
NAMES = [name for name in FORMATS if "int8" in FORMATS[name].operands]
CODED = [name for name in NAMES if name != "int8"]
WIDTHS = (1, 31, 32, 33, 96)
DEPTHS = (64, 128, 192, 576)
BLOCK_K = 128  # of one activation scale


@pytest.fixture(autouse=True)
def whole() -> Iterator[None]:
    yield
    native.set_break(0)


def values(shape: tuple[int, ...], seed: int, spread: int = 3) -> F32:
    rng = np.random.default_rng([seed, *shape])
    return (rng.standard_normal(shape) * np.exp2(rng.integers(-spread, spread + 1, shape))).astype(np.float32)


def aligned(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A copy at a multiple of 64 bytes, as panels lie in memory."""
    room = np.empty(packed.size + 64, np.uint8)
    begin = -room.ctypes.data % 64
    room[begin : begin + packed.size] = packed
    return room[begin : begin + packed.size]


class Weight:
    """A matrix as it was packed."""

    def __init__(self, name: str, w: F32) -> None:
        self.name = name
        self.n, self.k = w.shape
        self.packed = aligned(FORMATS[name].pack(w))
        self.wide = FORMATS[name].unpack(self.packed, self.n, self.k)

    def times(self, isa: str, x: F32, bias: F32 | None = None, addend: F32 | None = None) -> F32:
        x = np.ascontiguousarray(x)
        y: F32 = native.test_linear(isa, self.name, self.packed, self.n, self.k, x, bias, addend, "int8")
        return y

    def rows(self) -> CodedRows:
        rows: CodedRows = FORMATS[self.name].coding.unpack(self.packed, self.n, self.k)  # type: ignore[attr-defined]
        return rows


def quantized(x: F32) -> tuple[I64, F32]:
    """Codes [T,K] and scales [T, blocks of 128], by the rule of native/kernels.h."""
    rows, k = x.shape
    blocks = round_up(k, BLOCK_K) // BLOCK_K
    padded = np.zeros((rows, blocks * BLOCK_K), np.float32)
    padded[:, :k] = x
    by_block = padded.reshape(rows, blocks, BLOCK_K)
    amax = np.abs(by_block).max(axis=2)
    is_zero = amax < 2.0**-118
    factor = np.float32(127) / np.where(is_zero, np.float32(1), amax)
    codes = np.rint(by_block * np.where(is_zero, np.float32(0), factor)[:, :, None])
    scales = np.where(is_zero, np.float32(0), amax * (np.float32(1) / np.float32(127)))
    return codes.reshape(rows, -1)[:, :k].astype(np.int64), scales


def near(weight: Weight, x: F32) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The product of the quantized operands in float64, and the sum of magnitudes behind each element."""
    codes, scales = quantized(x)
    wide = codes * np.repeat(scales.astype(np.float64), BLOCK_K, axis=1)[:, : weight.k]
    w = weight.wide.astype(np.float64)
    return wide @ w.T, np.abs(wide) @ np.abs(w).T


def by_contract(weight: Weight, x: F32) -> F32:
    """linear_integer.h, group by group: exact integer sums, then single roundings in one order."""
    codes, scales = quantized(x)
    rows = weight.rows()
    integers, offset = rows.codes.astype(np.int64), rows.offset()
    if weight.name == "int8":
        group, scale, column_scale = BLOCK_K, None, rows.scale()[:, 0]
    else:
        group, scale, column_scale = rows.coding.group, rows.scale(), np.ones(weight.n, np.float32)
    acc = np.zeros((len(x), weight.n), np.longdouble)
    for b in range(scales.shape[1]):
        t = np.zeros_like(acc)
        end = min((b + 1) * BLOCK_K, weight.k)
        for first in range(b * BLOCK_K, end, group):
            here, g = slice(first, min(first + group, end)), first // group
            c = (codes[:, here] @ integers[:, here].T).astype(np.longdouble)
            t = c if scale is None else rounded(c * scale[:, g].astype(np.longdouble) + t)
            if offset is not None:
                t = rounded(codes[:, here].sum(1)[:, None] * offset[:, g].astype(np.longdouble) + t)
        acc = rounded(acc + t * scales[:, b : b + 1].astype(np.longdouble))
    return (acc.astype(np.float32) * column_scale).astype(np.float32)


def rounded(x: NDArray[np.longdouble]) -> NDArray[np.longdouble]:
    return x.astype(np.float32).astype(np.longdouble)


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="needs a long double of 64 bits")
@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("n", "k"), [(33, 64), (5, 320), (32, 576)])
def test_every_isa_computes_what_the_contract_says(isa, name, n, k):
    weight, x = Weight(name, values((n, k), 1)), values((13, k), 2)

    assert weight.times(isa, x).tobytes() == by_contract(weight, x).tobytes()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", WIDTHS)
@pytest.mark.parametrize("k", DEPTHS)
def test_all_isas_agree_in_every_bit(name, n, k):
    weight = Weight(name, values((n, k), 3))
    for rows in (*range(1, 41), 63, 64, 65) if k == 192 else (1, 2, 3, 8, 9, 17, 33, 65):
        x, bias, addend = values((rows, k), 4), values((n,), 5), values((rows, n), 6)
        first, *others = (weight.times(isa, x, bias, addend).tobytes() for isa in native.isas())

        assert all(other == first for other in others), f"{rows} rows"


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("k", DEPTHS)
def test_the_sum_is_near_the_true_sum(isa, name, k):
    for n in WIDTHS:
        weight, x = Weight(name, values((n, k), 7)), values((19, k), 8)
        true, size = near(weight, x)

        assert (np.abs(weight.times(isa, x) - true) <= 1e-5 * size).all()


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [2, 3, 8, 9, 15, 16, 17, 31, 33, 40, 63, 64, 65, 530])
def test_a_row_alone_has_the_bits_it_has_among_others(isa, name, rows):
    weight, x = Weight(name, values((65, 192), 9)), values((rows, 192), 10)
    together = weight.times(isa, x)
    for row in {0, 1, rows // 2, rows - 1}:
        (alone,) = weight.times(isa, x[row : row + 1])

        assert alone.tobytes() == together[row].tobytes()


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [2, 9, 40])
def test_breaking_the_invariance_is_noticed(isa, name, rows):
    weight, x = Weight(name, values((65, 576), 9)), values((rows, 576), 10)
    native.set_break(1)
    together = weight.times(isa, x)
    alone = np.concatenate([weight.times(isa, x[row : row + 1]) for row in range(rows)])

    assert alone.tobytes() != together.tobytes()
    np.testing.assert_allclose(alone, together, rtol=0, atol=1e-4 * np.abs(together).max())


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [1, 31, 33])
def test_bias_is_added_to_the_sum_and_that_to_the_addend(isa, name, n):
    weight, x = Weight(name, values((n, 192), 11)), values((19, 192), 12)
    bias, addend = values((n,), 13), values((19, n), 14)
    plain = weight.times(isa, x)

    assert weight.times(isa, x, bias).tobytes() == (plain + bias).tobytes()
    assert weight.times(isa, x, None, addend).tobytes() == (addend + plain).tobytes()
    assert weight.times(isa, x, bias, addend).tobytes() == (addend + (plain + bias)).tobytes()


def coded(name: str, codes: NDArray[np.int64], zero: int = 0) -> Weight:
    """Codes [N,K] as they are, with scales of 1 and, where there is one, this zero point or minimum."""
    weight = Weight(name, np.zeros(codes.shape, np.float32))
    coding = FORMATS[name].coding  # type: ignore[attr-defined]
    n, k = codes.shape
    ones = {"scale": 1, "sub_scale": 1, "d": 1, "dmin": 1, "zero": zero, "min": zero, "sub_min": abs(zero)}
    parts = {
        part: np.full((n, -(-k // (coding.group if per_group else BLOCK_K))), ones[part], dtype)
        for part, dtype, per_group in PARTS[coding.trailer]
    }
    weight.packed = aligned(coding.pack(CodedRows(coding, codes.astype(np.int8), parts)))
    weight.wide = FORMATS[name].unpack(weight.packed, *codes.shape)
    return weight


def code_range(name: str) -> tuple[int, int]:
    coding = FORMATS[name].coding  # type: ignore[attr-defined]
    return (-128, 127) if coding.bits == 8 else (-coding.bias, 15 - coding.bias)


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("name", CODED)
@pytest.mark.parametrize("k", [128, 192])
def test_every_code_counts_as_it_stands(isa, name, k):
    """Each column holds one code everywhere, beside values of 127, and of -127: no pair saturates."""
    low, high = code_range(name)
    codes = np.arange(low, high + 1)
    weight = coded(name, np.repeat(codes[:, None], k, axis=1))
    for sign in (127, -127):
        y = weight.times(isa, np.full((3, k), sign, np.float32))

        np.testing.assert_allclose(y, np.broadcast_to(sign * k * codes, y.shape), rtol=1e-6)


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("name", [name for name in CODED if name.endswith(("_zero", "_min", "_super"))])
@pytest.mark.parametrize("zero", [-128, -3, 0, 8, 127])
def test_what_is_taken_off_every_code_is_taken_off(isa, name, zero):
    """A zero point as large as the codes themselves: nothing is left of a column that holds it."""
    zero = zero if "zero" in name else min(abs(zero), 60)
    codes = np.repeat(np.arange(*code_range(name))[:, None], 192, axis=1)
    weight, x = coded(name, codes, zero), np.repeat([[127.0], [-127.0]], 192, axis=1).astype(np.float32)
    taken = -zero if name.endswith("_min") else zero

    expected = x.sum(1)[:, None] * (codes[:, 0] - taken)
    np.testing.assert_allclose(weight.times(isa, x), expected, rtol=1e-6)


@pytest.mark.parametrize("isa", native.isas())
def test_a_foreign_code_of_minus_128_counts_as_it_stands(isa):
    weight = Weight("int8", np.full((32, 128), -1, np.float32))
    weight.packed[: 128 * 32] = 128  # -128, which the packer never writes
    y = weight.times(isa, np.ones((3, 128), np.float32))

    np.testing.assert_allclose(y, -128 * 128 / 127, rtol=1e-6)


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_nan_and_the_others_are_as_before(isa, name, bad):
    weight, x = Weight(name, values((33, 192), 15)), values((20, 192), 16)
    before = weight.times(isa, x)
    x[7, 130] = bad
    after = weight.times(isa, x)

    assert np.isnan(after[7]).all()
    assert np.delete(after, 7, axis=0).tobytes() == np.delete(before, 7, axis=0).tobytes()


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [0.0, 1e-42, 2.0**-119])
def test_rows_too_small_for_a_scale_count_as_zero(isa, name, size):
    weight, bias = Weight(name, values((33, 192), 17)), values((33,), 18)
    y = weight.times(isa, np.full((3, 192), size, np.float32), bias)

    assert y.tobytes() == np.broadcast_to(bias, (3, 33)).tobytes()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [2.0**-117, 1e-30, 1e30])
def test_all_isas_agree_where_scales_are_extreme(name, size):
    weight = Weight(name, values((33, 192), 19) * np.float32(1e-6))  # fp16 subnormals among the scales
    x = values((20, 192), 20) * np.float32(size)
    results = {weight.times(isa, x).tobytes() for isa in native.isas()}

    assert len(results) == 1
