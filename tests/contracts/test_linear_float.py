"""The float linears keep their contracts: one set of bits on every ISA, for any number of rows.

The contracts are restated here in float64: where operands have few enough bits, a product and a sum are exact
in it, so that rounding to float32 once is what an FMA does.
"""

from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from penstock.weights.format import FORMATS

native = pytest.importorskip("penstock._native", reason="this build has no native backend")

F32 = NDArray[np.float32]
NAMES = ("float32", "float16", "bfloat16")
STORED = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
ROWS = (*range(1, 41), 63, 64, 65, 97, 200)
# (N, K): every awkward width with every awkward depth would take minutes on the scalar kernels.
SHAPES = [(1, 32), (31, 64), (32, 96), (33, 576), (96, 2048), (96, 96), (1, 576), (31, 2048), (544, 64)]


@pytest.fixture(autouse=True)
def whole() -> Iterator[None]:
    yield
    native.set_break(0)


def values(shape: tuple[int, ...], seed: int, *, exponents: int = 0, mantissa_bits: int = 24) -> F32:
    """Normal numbers times powers of two within +-`exponents`, of at most `mantissa_bits` bits."""
    rng = np.random.default_rng([seed, *shape])
    v = rng.standard_normal(shape) * np.exp2(rng.integers(-exponents, exponents + 1, shape))
    mantissa, exponent = np.frexp(v)
    scale = 2.0**mantissa_bits
    return np.ldexp(np.rint(mantissa * scale) / scale, exponent).astype(np.float32)


def stored(name: str, w: F32) -> F32:
    return w.astype(STORED[name]).astype(np.float32)


def aligned(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A copy at a multiple of 64 bytes, as panels lie in memory."""
    room = np.empty(packed.size + 64, np.uint8)
    begin = -room.ctypes.data % 64
    room[begin : begin + packed.size] = packed
    return room[begin : begin + packed.size]


def linear(isa: str, name: str, w: F32, x: F32, bias: F32 | None = None, addend: F32 | None = None) -> F32:
    packed = aligned(FORMATS[name].pack(w))
    y: F32 = native.test_linear(isa, name, packed, *w.shape, np.ascontiguousarray(x), bias, addend)
    return y


def by_contract(name: str, w: F32, x: F32) -> F32:
    """The rule itself, k by k. Exact only for operands of few bits."""
    x64, w64 = x.astype(np.float64), w.astype(np.float64)

    def chain(columns: range) -> F32:
        acc = np.zeros((len(x), len(w)), np.float32)
        for k in columns:
            acc = (x64[:, k, None] * w64[None, :, k] + acc).astype(np.float32)
        return acc

    depth = x.shape[1]
    if name != "bfloat16":
        return chain(range(depth))
    acc = np.zeros((len(x), len(w)), np.float32)
    for k in range(0, depth, 32):
        end = min(k + 32, depth)
        acc = acc + (chain(range(k, end, 2)) + chain(range(k + 1, end, 2)))
    return acc


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("n", "k"), [(33, 96), (5, 320), (32, 32)])
def test_every_isa_computes_what_the_contract_says(isa, name, n, k):
    bits = 8 if name == "bfloat16" else 11
    x, w = (values(shape, 1, exponents=2, mantissa_bits=bits) for shape in ((13, k), (n, k)))

    assert linear(isa, name, w, x).tobytes() == by_contract(name, w, x).tobytes()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_all_isas_agree_in_every_bit(name, n, k):
    w = stored(name, values((n, k), 2, exponents=6))
    for rows in ROWS if k <= 96 else (1, 2, 7, 17, 33):
        x = values((rows, k), 3, exponents=6)
        bias, addend = values((n,), 4), values((rows, n), 5)
        first, *others = (linear(isa, name, w, x, bias, addend).tobytes() for isa in native.isas())

        assert all(other == first for other in others), f"{rows} rows"


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [2, 3, 6, 7, 12, 13, 16, 17, 33, 64, 65, 97, 200])
def test_a_row_alone_has_the_bits_it_has_among_others(isa, name, rows):
    w, x = stored(name, values((65, 192), 6)), values((rows, 192), 7)
    together = linear(isa, name, w, x)
    for row in {0, 1, rows // 2, rows - 1}:
        (alone,) = linear(isa, name, w, x[row : row + 1])

        assert alone.tobytes() == together[row].tobytes()


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [2, 8, 40])
def test_breaking_the_invariance_is_noticed(isa, name, rows):
    w, x = stored(name, values((65, 192), 6)), values((rows, 192), 7)
    native.set_break(1)
    together = linear(isa, name, w, x)
    alone = np.concatenate([linear(isa, name, w, x[row : row + 1]) for row in range(rows)])

    assert alone.tobytes() != together.tobytes()
    np.testing.assert_allclose(alone, together, rtol=0, atol=1e-3)


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_the_sum_is_near_the_true_sum(isa, name, n, k):
    w, x = stored(name, values((n, k), 8)), values((9, k), 9)
    true = x.astype(np.float64) @ w.astype(np.float64).T
    size = np.abs(x).astype(np.float64) @ np.abs(w).astype(np.float64).T
    tolerance = 2**-7 if name == "bfloat16" else 1e-5

    assert (np.abs(linear(isa, name, w, x) - true) <= tolerance * size).all()


@pytest.mark.parametrize("name", NAMES)
def test_all_isas_agree_where_exponents_are_wide_and_products_vanish(name):
    wide = 14 if name == "float16" else 55
    w, x = stored(name, values((40, 192), 10, exponents=wide)), values((20, 192), 11, exponents=55)
    x[::3] *= np.float32(2.0**-50)
    results = [linear(isa, name, w, x) for isa in native.isas()]

    assert len({y.tobytes() for y in results}) == 1
    assert np.isfinite(results[0]).all()


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_denormals_count_as_zero(isa, name):
    one, tiny = np.full((3, 64), 1, np.float32), np.full((3, 64), 2.0**-130, np.float32)
    huge = np.full((3, 64), 2.0**120, np.float32)

    assert not linear(isa, name, tiny, huge).any()
    assert not linear(isa, name, huge, tiny).any()
    assert not linear(isa, name, np.full((3, 64), 2.0**-100, np.float32), one * 2.0**-40).any()


@pytest.mark.parametrize("isa", native.isas())
def test_subnormal_fp16_weights_keep_their_value(isa):
    w = np.full((3, 64), 3 * 2.0**-24, np.float32)

    assert (linear(isa, "float16", w, np.ones((2, 64), np.float32)) == 192 * 2.0**-24).all()


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [1, 31, 33])
def test_bias_is_added_to_the_sum_and_that_to_the_addend(isa, name, n):
    w, x = stored(name, values((n, 96), 12)), values((19, 96), 13)
    bias, addend = values((n,), 14), values((19, n), 15)
    plain = linear(isa, name, w, x)

    assert linear(isa, name, w, x, bias).tobytes() == (plain + bias).tobytes()
    assert linear(isa, name, w, x, None, addend).tobytes() == (addend + plain).tobytes()
    assert linear(isa, name, w, x, bias, addend).tobytes() == (addend + (plain + bias)).tobytes()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("n", "k"), [(1, 32), (31, 64), (33, 96), (96, 100)])
def test_the_native_packer_gives_the_same_bytes(name, n, k):
    w = stored(name, values((n, k), 16))
    twin = FORMATS[name].pack(w)

    source = w.astype(STORED[name])
    assert (
        native.pack(name, source.view(np.uint16) if name == "bfloat16" else source, name).tobytes()
        == twin.tobytes()
    )
    assert (FORMATS[name].unpack(twin, n, k) == w).all()
    assert (native.unpack(name, aligned(twin), n, k) == w).all()


def test_the_native_packer_rounds_and_widens_as_its_twins_do():
    w = values((40, 100), 17, exponents=20)
    w[0, :3] = 2.0**-130, -(2.0**-149), 0

    assert native.pack("bfloat16", w, "float32").tobytes() == FORMATS["bfloat16"].pack(w).tobytes()
    half = values((40, 100), 18).astype(np.float16)
    half[0, 0] = 2.0**-24
    for name in ("float32", "bfloat16"):
        assert native.pack(name, half, "float16").tobytes() == FORMATS[name].pack(half).tobytes()
    brain = w.astype(ml_dtypes.bfloat16)
    twin = FORMATS["float32"].pack(brain.astype(np.float32))
    assert native.pack("float32", brain.view(np.uint16), "bfloat16").tobytes() == twin.tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [(0, 0), (39, 99), (31, 64)])
@pytest.mark.parametrize("name", NAMES)
def test_the_native_packer_refuses_what_is_not_finite(name, at, bad):
    w = values((40, 100), 19)
    native.pack(name, w, "float32")
    w[at] = bad

    with pytest.raises(ValueError, match="NaN or Inf"):
        native.pack(name, w, "float32")


def test_the_native_packer_refuses_what_bf16_cannot_hold():
    w = np.full((1, 64), np.finfo(np.float32).max, np.float32)

    native.pack("float32", w, "float32")
    with pytest.raises(ValueError, match="NaN or Inf"):
        native.pack("bfloat16", w, "float32")
