"""Row kernels (RMS norm, gated activations) of every instruction set: same bits, near a float64 reference."""

from math import erf

import numpy as np
import pytest

native = pytest.importorskip("penstock._native")
ISAS = native.isas()
KINDS = ["float32", "bfloat16", "int8"]
ACTIVATIONS = ["silu", "gelu", "gelu_tanh"]
WIDTHS = [1, 15, 16, 33, 64, 127, 128, 576, 1000]

# What the operand's rounding may change, relative to the largest value of the row's block of 128.
OPERAND_ERROR = {"float32": 5e-7, "bfloat16": 2**-8, "int8": 0.51 / 127}


def within(kind: str, y: np.ndarray, expected: np.ndarray) -> bool:
    """fp32 and bf16 err relative to each value, int8 relative to the largest of its block."""
    if kind != "int8":
        return bool(np.all(np.abs(y - expected) <= OPERAND_ERROR[kind] * np.abs(expected) + 1e-7))
    for at in range(0, y.shape[1], 128):
        block, want = y[:, at : at + 128], expected[:, at : at + 128]
        amax = np.abs(want).max(axis=1, keepdims=True)
        if not np.all(np.abs(block - want) <= OPERAND_ERROR[kind] * amax + 1e-7):
            return False
    return True


def norm_reference(x: np.ndarray, weight: np.ndarray, eps: float, offset: float) -> np.ndarray:
    x64 = x.astype(np.float64)
    y: np.ndarray = x64 / np.sqrt(np.mean(x64**2, axis=1, keepdims=True) + eps)
    y *= weight.astype(np.float64) + offset
    return y


def gated_reference(x: np.ndarray, act: str) -> np.ndarray:
    gate, up = np.split(x.astype(np.float64), 2, axis=1)
    share: np.ndarray
    if act == "silu":
        share = 1 / (1 + np.exp(-gate))
    elif act == "gelu":
        share = 0.5 * (1 + np.vectorize(erf)(gate / np.sqrt(2)))
    else:
        share = 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    return gate * share * up


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("isa", ISAS)
def test_norm_is_right_and_has_one_set_of_bits(isa: str, width: int, kind: str) -> None:
    rng = np.random.default_rng(width)
    x = (rng.standard_normal((21, width)) * 10.0 ** rng.integers(-3, 4, (21, 1))).astype(np.float32)
    x[3] = 0
    weight = rng.uniform(0.5, 1.5, width).astype(np.float32)
    y = native.test_norm(isa, kind, x, weight, 1e-6, 0.0)

    assert within(kind, y, norm_reference(x, weight, 1e-6, 0.0))
    assert y.tobytes() == native.test_norm(ISAS[0], kind, x, weight, 1e-6, 0.0).tobytes()


@pytest.mark.parametrize("isa", ISAS)
def test_norm_adds_its_offset_to_the_weight(isa: str) -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((2, 96)).astype(np.float32), rng.standard_normal(96).astype(np.float32)
    y = native.test_norm(isa, "float32", x, weight, 1e-5, 1.0)
    assert within("float32", y, norm_reference(x, weight, 1e-5, 1.0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("isa", ISAS)
def test_gated_is_right_and_has_one_set_of_bits(isa: str, act: str, kind: str) -> None:
    for width in WIDTHS:
        rng = np.random.default_rng(width)
        x = (rng.standard_normal((19, 2 * width)) * 3).astype(np.float32)
        y = native.test_gated(isa, kind, x, act)

        expected = gated_reference(x, act)
        if kind == "float32":  # beside its own rounding: that of 1 - e, and of e^x for x of some tens
            scale = np.abs(x[:, :width] * x[:, width:])
            assert np.all(np.abs(y - expected) <= 1.5e-6 * np.abs(expected) + 2e-7 * scale)
        else:
            assert within(kind, y, expected)
        assert y.tobytes() == native.test_gated(ISAS[0], kind, x, act).tobytes()


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("isa", ISAS)
def test_activations_hold_over_the_whole_range_of_gates(isa: str, act: str) -> None:
    gate = np.concatenate([np.linspace(-100, 100, 4001), [-1e20, -1e-20, 0, 1e-20, 1e20]]).astype(np.float32)
    x = np.concatenate([gate, np.ones_like(gate)])[None, :]
    y = native.test_gated(isa, "float32", x, act)[0]

    with np.errstate(over="ignore"):
        expected = gated_reference(x, act)[0]
    assert np.all(np.isfinite(y))
    assert np.all(np.abs(y - expected) <= 5e-7 * np.abs(gate) * (gate > -20) + 1e-6 * np.abs(expected) + 1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("isa", ISAS)
def test_a_row_has_the_same_bits_alone_and_among_others(isa: str, kind: str) -> None:
    rng = np.random.default_rng(5)
    x, weight = rng.standard_normal((37, 200)).astype(np.float32), rng.standard_normal(200).astype(np.float32)
    normed = native.test_norm(isa, kind, x, weight, 1e-6, 0.0)
    gated = native.test_gated(isa, kind, x, "silu")
    for row in (0, 15, 16, 36):
        one = x[row : row + 1].copy()
        assert native.test_norm(isa, kind, one, weight, 1e-6, 0.0).tobytes() == normed[row].tobytes()
        assert native.test_gated(isa, kind, one, "silu").tobytes() == gated[row].tobytes()
