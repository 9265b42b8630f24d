"""Integer codes under the BF16 contract: one set of bits on every ISA, for any number of rows, every format.

The contract is restated here from native/kernels/linear_codes.h; its single roundings to float32 are taken
from long double, in which every product and sum below is exact or as good as.
"""

from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from penstock.weights.coding import E2M1, PARTS, CodedRows
from penstock.weights.format import FORMATS

native = pytest.importorskip("penstock._native", reason="this build has no native backend")

F32 = NDArray[np.float32]
NAMES = [name for name in FORMATS if name.startswith("int")] + ["mxfp4"]
SHAPES = [(33, 64), (5, 320), (32, 576), (65, 1216)]


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
        y: F32 = native.test_linear(isa, self.name, self.packed, self.n, self.k, x, bias, addend, "bfloat16")
        return y

    def rows(self) -> CodedRows:
        rows: CodedRows = FORMATS[self.name].coding.unpack(self.packed, self.n, self.k)  # type: ignore[attr-defined]
        return rows


def rounded(x: NDArray[np.longdouble]) -> NDArray[np.longdouble]:
    return x.astype(np.float32).astype(np.longdouble)


def chains(x: NDArray[np.longdouble], codes: NDArray[np.longdouble]) -> NDArray[np.longdouble]:
    """The even chain plus the odd one, from 0: x[T, k] times codes[N, k]."""
    ends = []
    for first in (0, 1):
        acc = np.zeros((len(x), len(codes)), np.longdouble)
        for k in range(first, x.shape[1], 2):
            acc = rounded(x[:, k, None] * codes[None, :, k] + acc)
        ends.append(acc)
    return rounded(ends[0] + ends[1])


def by_contract(weight: Weight, x: F32) -> F32:
    wide = x.astype(ml_dtypes.bfloat16).astype(np.longdouble)
    acc = np.zeros((len(x), weight.n), np.longdouble)
    if weight.name == "int8":
        k_padded = -(-weight.k // 64) * 64
        panels = weight.packed.reshape(-1, 32 * k_padded + 128)
        scale = panels[:, -128:].copy().view(np.float32).reshape(-1)[: weight.n]
        codes = np.rint(weight.wide / np.where(scale == 0, 1, scale)[:, None]).astype(np.longdouble)
        for k in range(0, weight.k, 32):
            acc = rounded(acc + chains(wide[:, k : k + 32], codes[:, k : k + 32]))
        return (acc.astype(np.float32) * scale).astype(np.float32)
    rows = weight.rows()
    codes = E2M1[rows.codes] if weight.name == "mxfp4" else rows.codes
    codes, scale = codes.astype(np.longdouble), rows.scale().astype(np.longdouble)
    offset = rows.offset()
    group = rows.coding.group
    for g, first in enumerate(range(0, weight.k, group)):
        total, ones = np.zeros_like(acc), np.zeros((len(x), 1), np.longdouble)
        for k in range(first, min(first + group, weight.k), min(group, 32)):
            here = slice(k, min(k + min(group, 32), weight.k))
            total = rounded(total + chains(wide[:, here], codes[:, here]))
            ones = rounded(ones + chains(wide[:, here], np.ones_like(codes[:1, here])))
        acc = rounded(total * scale[:, g] + acc)
        if offset is not None:
            acc = rounded(ones * offset[:, g].astype(np.longdouble) + acc)
    return acc.astype(np.float32)


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="needs a long double of 64 bits")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("n", "k"), [(33, 64), (5, 320)])
def test_every_isa_computes_what_the_contract_says(name, n, k):
    weight, x = Weight(name, values((n, k), 1)), values((7, k), 2)
    expected = by_contract(weight, x).tobytes()
    for isa in native.isas():
        assert weight.times(isa, x).tobytes() == expected, isa


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_all_isas_agree_in_every_bit(name, n, k):
    weight = Weight(name, values((n, k), 3))
    for rows in (*range(1, 20), 31, 33, 65) if k == 320 else (1, 3, 6, 9, 17, 33):
        x, bias, addend = values((rows, k), 4), values((n,), 5), values((rows, n), 6)
        first, *others = (weight.times(isa, x, bias, addend).tobytes() for isa in native.isas())

        assert all(other == first for other in others), f"{rows} rows"


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("name", NAMES)
def test_the_sum_is_near_the_true_sum(isa, name):
    weight, x = Weight(name, values((33, 576), 7)), values((19, 576), 8)
    wide, w = x.astype(ml_dtypes.bfloat16).astype(np.float64), weight.wide.astype(np.float64)

    assert (np.abs(weight.times(isa, x) - wide @ w.T) <= 1e-5 * (np.abs(wide) @ np.abs(w).T)).all()


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [2, 9, 33, 100, 530])
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
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_not_finite_spoils_no_other(isa, name, bad):
    weight, x = Weight(name, values((33, 192), 15)), values((20, 192), 16)
    before = weight.times(isa, x)
    x[7, 130] = bad
    after = weight.times(isa, x)

    assert not np.isfinite(after[7]).any()
    assert np.delete(after, 7, axis=0).tobytes() == np.delete(before, 7, axis=0).tobytes()


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("name", [name for name in NAMES if name != "int8"])
def test_every_code_counts_as_it_stands(isa, name):
    """Each column holds one code everywhere, times 1: the sum of a group tells it."""
    coding = FORMATS[name].coding  # type: ignore[attr-defined]
    low, high = (-128, 127) if coding.bits == 8 else (-coding.bias, 15 - coding.bias)
    codes = np.arange(low, high + 1)
    groups = np.ones((len(codes), 128 // coding.group), np.int8)
    parts = {
        "scale": groups,
        "sub_scale": groups,
        "zero": 0 * groups,
        "min": 0 * groups,
        "sub_min": 0 * groups,
    }
    parts |= {"d": groups[:, :1], "dmin": 0 * groups[:, :1], "exponent": 127 * groups.astype(np.int16)}
    named = {part: parts[part].astype(dtype) for part, dtype, _ in PARTS[coding.trailer]}
    rows = CodedRows(coding, np.repeat(codes[:, None], 128, axis=1).astype(np.int8), named)
    packed = aligned(coding.pack(rows))
    y = native.test_linear(
        isa, name, packed, len(codes), 128, np.ones((3, 128), np.float32), None, None, "bfloat16"
    )

    assert (y == 128 * (E2M1 if name == "mxfp4" else codes)).all()
