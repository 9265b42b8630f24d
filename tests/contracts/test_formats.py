"""Every weight format keeps the promises of penstock.weights.format.WeightFormat; native is its twin."""

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from penstock.weights.format import FORMATS, K_MULTIPLE, PANEL_COLUMNS, round_up
from penstock.weights.formats.int4 import Int4

F32 = NDArray[np.float32]
SHAPES = [(1, 64), (31, 128), (32, 100), (33, 192), (96, 576), (64, 1)]
INTEGER = ("int8", "int4_g32", "int4_g64", "int4_g128")


def weights(n: int, k: int, seed: int = 0) -> F32:
    """Rows of sizes some powers of two apart, one of them zero, and one with equal and opposite extremes."""
    rng = np.random.default_rng([seed, n, k])
    w = (rng.standard_normal((n, k)) * np.exp2(rng.integers(-6, 6, (n, 1)))).astype(np.float32)
    w[n // 2] = 0
    w[-1] = np.where(np.arange(k) % 3 == 1, 2, -2)
    return w


def group_bound(group: int) -> Callable[[F32], F32]:
    """One step of the code at the far end of the range, and the rounding of the scale to fp16."""

    def bound(w: F32) -> F32:
        n, k = w.shape
        padded = np.zeros((n, round_up(k, group)), np.float32)
        padded[:, :k] = np.abs(w)
        amax = padded.reshape(n, -1, group).max(axis=2)
        return np.repeat(amax / 8 * np.float32(1 + 2**-7), group, axis=1)[:, :k]

    return bound


def codes_bound(name: str) -> Callable[[F32], F32]:
    """1.25 steps of the group: half for the code, the rest for zero points and scales rounded to fp16.

    Scales of scales: steps of the superblock's widest group.
    """

    def bound(w: F32) -> F32:
        coding = FORMATS[name].coding  # type: ignore[attr-defined]
        if coding.trailer == "exponent":
            return group_bound(coding.group)(w) * np.float32(8 / 5)
        span = coding.group if coding.trailer in ("scale", "zero", "min") else 128
        n, k = w.shape
        padded = np.zeros((n, round_up(k, span)), np.float32)
        padded[:, :k] = w
        groups = padded.reshape(n, -1, span)
        least, greatest = np.minimum(groups.min(axis=2), 0), np.maximum(groups.max(axis=2), 0)
        levels = {"super": 31, "sub": 31}.get(coding.trailer, 127) if coding.bits == 8 else 15
        return np.repeat(1.25 * (greatest - least) / np.float32(levels), span, axis=1)[:, :k]

    return bound


# What each plug-in's docstring states, for weights of ordinary size.
BOUNDS: dict[str, Callable[[F32], F32]] = {
    "float32": np.zeros_like,
    "float16": lambda w: np.abs(w) * np.float32(2**-11) + np.float32(2**-25),
    "bfloat16": lambda w: np.abs(w) * np.float32(2**-8),
    "int8": lambda w: np.broadcast_to(
        np.abs(w).max(axis=1, keepdims=True) / 254 * np.float32(1.00001), w.shape
    ),
    "int4_g32": group_bound(32),
    "int4_g64": group_bound(64),
    "int4_g128": group_bound(128),
}
BOUNDS |= {name: codes_bound(name) for name in FORMATS if name not in BOUNDS}


def aligned(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A copy at a multiple of 64 bytes, as panels lie in memory."""
    room = np.empty(packed.size + 64, np.uint8)
    begin = -room.ctypes.data % 64
    room[begin : begin + packed.size] = packed
    return room[begin : begin + packed.size]


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_registered_under_its_name(name):
    assert FORMATS[name].name == name


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_the_error_is_within_the_bound_that_is_stated(name, n, k):
    w = weights(n, k)
    back = FORMATS[name].unpack(FORMATS[name].pack(w), n, k)

    assert back.shape == w.shape
    assert back.dtype == np.float32
    assert (np.abs(back - w) <= BOUNDS[name](w)).all()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_bytes_per_weight_is_what_packing_takes(name, n, k):
    packed = FORMATS[name].pack(weights(n, k))

    assert packed.dtype == np.uint8
    assert packed.size == pytest.approx(FORMATS[name].bytes_per_weight(k) * k * round_up(n, PANEL_COLUMNS))


@pytest.mark.parametrize("name", FORMATS)
def test_a_column_is_packed_without_regard_to_the_others(name):
    w = weights(70, 192)
    whole = FORMATS[name].unpack(FORMATS[name].pack(w), 70, 192)
    for row in (0, 31, 32, 69):
        alone = FORMATS[name].unpack(FORMATS[name].pack(w[row : row + 1]), 1, 192)

        assert alone.tobytes() == whole[row : row + 1].tobytes()


@pytest.mark.parametrize("name", FORMATS)
def test_panels_follow_each_other(name):
    w = weights(96, 192)
    panels = [FORMATS[name].pack(w[first : first + 32]) for first in (0, 32, 64)]

    assert np.concatenate(panels).tobytes() == FORMATS[name].pack(w).tobytes()


@pytest.mark.parametrize("name", FORMATS)
def test_padding_is_zero_weights(name):
    n, k = 33, 100
    packed = FORMATS[name].pack(weights(n, k))
    whole = FORMATS[name].unpack(packed, round_up(n, PANEL_COLUMNS), round_up(k, K_MULTIPLE))

    assert not whole[n:].any()
    if not name.endswith(("min", "super")):  # no code of these need stand for 0; activations there are 0
        assert not whole[:, k:].any()


@pytest.mark.parametrize("name", [name for name in FORMATS if hasattr(FORMATS[name], "coding")])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_codes_and_scales_come_back_as_they_were_packed(name, n, k):
    coding = FORMATS[name].coding
    packed = FORMATS[name].pack(weights(n, k, seed=7))
    rows = coding.unpack(packed, n, k)
    again = coding.unpack(coding.pack(rows), n, k)

    assert again.codes.tobytes() == rows.codes.tobytes()
    for part, values in rows.parts.items():
        assert again.parts[part].tobytes() == values.tobytes(), part
    assert native.panel_bytes(name, k) == coding.panel_bytes(k)


@pytest.mark.parametrize("name", FORMATS)
def test_packing_does_not_modify_the_weights(name):
    w = weights(33, 100)
    before = w.tobytes()
    FORMATS[name].pack(w)

    assert w.tobytes() == before


@pytest.mark.parametrize("name", [name for name in FORMATS if FORMATS[name].exact])
def test_an_exact_format_packs_what_it_unpacked_to_the_same_bytes(name):
    packed = FORMATS[name].pack(weights(33, 100))

    assert FORMATS[name].pack(FORMATS[name].unpack(packed, 33, 100)).tobytes() == packed.tobytes()


def test_int8_lies_as_its_drawing_says():
    w = weights(70, 192, seed=1)
    packed = FORMATS["int8"].pack(w).reshape(3, -1)
    column, k = 61, 150  # panel 1, t 1, c 13; kb 2, r 5, i 2
    code = packed[1, 2 * 2048 + 1 * 1024 + 5 * 64 + 13 * 4 + 2].view(np.int8)
    scale = packed[1, 32 * 192 + 4 * 29 : 32 * 192 + 4 * 30].copy().view(np.float32)[0]

    assert scale == np.abs(w[column]).max() / np.float32(127)
    assert code == np.rint(w[column, k] / scale)


@pytest.mark.parametrize("group", [32, 64, 128])
def test_int4_lies_as_its_drawing_says(group):
    w = weights(70, 320, seed=2)  # superblocks of 128, 128 and 64
    packed = FORMATS[f"int4_g{group}"].pack(w).reshape(3, -1)
    superblock = 2048 + 128 // group * 64
    for k, base, kb, length in (
        (32 + 21, 0, 0, 128),
        (192 + 6, superblock, 1, 128),
        (256 + 45, 2 * superblock, 0, 64),
    ):
        column, inside = 61, k % 64  # panel 1, t 1, c 13
        byte = packed[1, base + kb * 1024 + 512 + inside % 32 // 4 * 64 + 13 * 4 + inside % 4]
        code = int(byte) >> 4 if inside >= 32 else int(byte) & 15
        size = min(group, length)
        first = k // size * size
        at = base + length * 16 + (k % 128) // size * 64 + 2 * 29
        d = packed[1, at : at + 2].copy().view(np.float16)[0].astype(np.float32)
        members = w[column, first : first + size]
        largest = members[np.abs(members).argmax()]

        assert d == (largest / np.float32(-8)).astype(np.float16)
        assert code == min(15, int(np.floor(w[column, k] / d + np.float32(8.5))))


@pytest.mark.parametrize("group", [32, 64, 128])
def test_a_searched_scale_is_never_worse_and_mostly_better(group):
    w = np.random.default_rng(8).standard_normal((64, 512)).astype(np.float32)

    def loss(rule: str) -> float:
        layout = Int4(group, rule=rule)
        return float(np.square(layout.unpack(layout.pack(w), 64, 512) - w).mean())

    assert loss("mse") < 0.95 * min(loss("q4_0"), loss("rtn"))
    assert Int4(group).pack(w).tobytes() == FORMATS[f"int4_g{group}"].pack(w).tobytes()


def test_round_to_nearest_has_no_code_beyond_seven():
    w = np.random.default_rng(9).standard_normal((32, 128)).astype(np.float32)
    layout = Int4(32, rule="rtn")

    assert set(np.unique(layout.coding.unpack(layout.pack(w), 32, 128).codes)) <= set(range(-7, 8))


def test_a_gguf_block_keeps_its_codes():
    """Q4_0: d * (code - 8), code 0 present: what was quantized once is quantized to the same codes."""
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 16, (40, 4, 32))
    codes[:, :, 7] = 0
    d = (rng.standard_normal((40, 4, 1)) / 16).astype(np.float16).astype(np.float32)
    w = ((codes - 8) * d).astype(np.float32).reshape(40, 128)

    assert (FORMATS["int4_g32"].unpack(FORMATS["int4_g32"].pack(w), 40, 128) == w).all()


native = pytest.importorskip("penstock._native", reason="this build has no native backend")


@pytest.mark.parametrize("name", INTEGER)
@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_native_packer_gives_the_same_bytes(name, n, k, dtype):
    source = weights(n, k, seed=4).astype({"bfloat16": ml_dtypes.bfloat16}.get(dtype, dtype))
    raw = source.view(np.uint16) if dtype == "bfloat16" else source
    twin = FORMATS[name].pack(source.astype(np.float32))

    assert native.pack(name, raw, dtype).tobytes() == twin.tobytes()


@pytest.mark.parametrize("name", INTEGER)
@pytest.mark.parametrize("size", [0.0, 1e-40, 1e-37, 1e-35, 3e-8, 1e-7, 1e-6, 6e4, 1e6, 3e38])
def test_the_native_packer_agrees_at_the_ends_of_the_range(name, size):
    rng = np.random.default_rng(5)
    w = (rng.uniform(-1, 1, (40, 192)) * size).astype(np.float32)
    twin = FORMATS[name].pack(w)

    assert native.pack(name, w, "float32").tobytes() == twin.tobytes()
    assert np.isfinite(FORMATS[name].unpack(twin, 40, 192)).all()


@pytest.mark.parametrize("name", INTEGER)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_the_native_unpacker_gives_the_same_weights(name, n, k):
    packed = FORMATS[name].pack(weights(n, k, seed=6))

    assert (
        native.unpack(name, aligned(packed), n, k).tobytes() == FORMATS[name].unpack(packed, n, k).tobytes()
    )


@pytest.mark.parametrize("name", INTEGER)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [(0, 0), (39, 99), (32, 64)])
def test_the_native_packer_refuses_what_is_not_finite(name, bad, at):
    w = weights(40, 100)
    native.pack(name, w, "float32")
    w[at] = bad

    with pytest.raises(ValueError, match="NaN or Inf"):
        native.pack(name, w, "float32")
