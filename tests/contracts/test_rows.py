"""Row kernels (norms, activations, embeddings, caps) of every instruction set: same bits, near float64."""

from math import erf

import ml_dtypes
import numpy as np
import pytest

native = pytest.importorskip("penstock._native")
ISAS = native.isas()
KINDS = ["float32", "bfloat16", "int8"]
ACTIVATIONS = ["silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "relu2"]
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
    elif act == "quick_gelu":
        share = 1 / (1 + np.exp(-1.702 * gate))
    elif act in {"relu", "relu2"}:
        share = (gate > 0) * (1 if act == "relu" else gate)
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
            scale = np.abs(x[:, :width] * x[:, width:]) * (1 + np.abs(x[:, :width]) * (act == "relu2"))
            assert np.all(np.abs(y - expected) <= 1.5e-6 * np.abs(expected) + 2e-7 * scale)
        else:
            assert within(kind, y, expected)
        assert y.tobytes() == native.test_gated(ISAS[0], kind, x, act).tobytes()


@pytest.mark.parametrize("isa", ISAS)
def test_a_clamped_gate_is_right_and_has_one_set_of_bits(isa: str) -> None:
    """Within the limits, at them, and beyond them on all sides."""
    for width in WIDTHS:
        x = (np.random.default_rng(width).standard_normal((19, 2 * width)) * 6).astype(np.float32)
        x[:4, 0] = x[:4, width] = [-1e30, 1e30, 7, -7]
        y = native.test_gated(isa, "float32", x, "clamped_swiglu")

        gate, up = np.minimum(x[:, :width], 7).astype(np.float64), np.clip(x[:, width:], -7, 7)
        expected = gate / (1 + np.exp(-1.702 * np.maximum(gate, -400))) * (up.astype(np.float64) + 1)
        assert np.all(np.abs(y - expected) <= 1e-5)
        assert y.tobytes() == native.test_gated(ISAS[0], "float32", x, "clamped_swiglu").tobytes()


@pytest.mark.parametrize("isa", ISAS)
def test_a_gate_that_is_no_number_stays_none(isa: str) -> None:
    for column in (0, 1):
        x = np.ones((1, 2), np.float32)
        x[0, column] = np.nan
        assert np.isnan(native.test_gated(isa, "float32", x, "clamped_swiglu")).all()


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("isa", ISAS)
def test_activations_hold_over_the_whole_range_of_gates(isa: str, act: str) -> None:
    largest = 1e18 if act == "relu2" else 1e20  # its square is finite
    gate = np.concatenate([np.linspace(-100, 100, 4001), [-largest, -1e-20, 0, 1e-20, largest]])
    gate = gate.astype(np.float32)
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


@pytest.mark.parametrize("kind", [*KINDS, "add"])
@pytest.mark.parametrize("norm_kind", ["rms", "layer"])
@pytest.mark.parametrize("isa", ISAS)
def test_norms_with_and_without_weight_and_bias_have_one_set_of_bits(isa, norm_kind, kind):
    for width in WIDTHS[1:]:
        rng = np.random.default_rng(width)
        x = (rng.standard_normal((18, width)) * 10.0 ** rng.integers(-2, 3, (18, 1)) + 0.5).astype(np.float32)
        weight, bias = rng.standard_normal((2, width)).astype(np.float32)
        addend = rng.standard_normal((18, width)).astype(np.float32) if kind == "add" else None
        for w, b in ((weight, bias), (weight, None), (None, None)):
            y = native.test_norm(isa, kind, x, w, 1e-5, 0.5, norm_kind, b, addend)
            x64 = x.astype(np.float64)
            centred = x64 - x64.mean(axis=1, keepdims=True) if norm_kind == "layer" else x64
            expected = centred / np.sqrt(np.mean(centred**2, axis=1, keepdims=True) + 1e-5)
            expected = expected * (1 if w is None else w + 0.5) + (0 if b is None else b)
            expected = expected + (0 if addend is None else addend)
            if kind in {"float32", "add"}:
                assert np.abs(y - expected).max() <= 2e-5  # 1e-6 of the mean that was taken away
            elif kind == "bfloat16":
                assert np.all(np.abs(y - expected) <= 2**-8 * np.abs(expected) + 2e-5)
            again = native.test_norm(ISAS[0], kind, x, w, 1e-5, 0.5, norm_kind, b, addend)
            assert y.tobytes() == again.tobytes()


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("isa", ISAS)
def test_an_activation_without_a_gate_is_one_that_is_gated_by_ones(isa, act):
    for width in WIDTHS:
        x = (np.random.default_rng(width).standard_normal((17, width)) * 3).astype(np.float32)
        plain = native.test_gated(isa, "bfloat16", x, act, False)
        gated = native.test_gated(isa, "bfloat16", np.hstack([x, np.ones_like(x)]), act)
        assert plain.tobytes() == gated.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("isa", ISAS)
def test_embeddings_are_widened_scaled_and_placed(isa, dtype):
    stored = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[dtype]
    for width in (1, 15, 16, 40, 65):
        rng = np.random.default_rng(width)
        table = rng.standard_normal((9, width)).astype(stored)
        places = rng.standard_normal((7, width)).astype(np.float32)
        tokens, positions = np.array([8, 0, 3, 3], np.int32), np.array([0, 4, 1, 2], np.int32)
        raw = table.view(np.uint16) if dtype != "float32" else table
        wide = table.astype(np.float32)[tokens]
        y = native.test_embed(isa, raw, dtype, tokens, positions, 1.0)
        placed = native.test_embed(isa, raw, dtype, tokens, positions, 2.5, places, 2)

        assert y.tobytes() == wide.tobytes()
        assert placed.tobytes() == (wide * np.float32(2.5) + places[positions + 2]).tobytes()


@pytest.mark.parametrize("isa", ISAS)
def test_capped_logits_stay_below_the_cap_and_near_tanh(isa):
    x = np.concatenate([np.linspace(-200, 200, 997), [-1e30, 0, 1e-30, 1e30]]).astype(np.float32)[None, :]
    y = native.test_softcap(isa, x, 30.0)
    expected = 30 * np.tanh(x.astype(np.float64) / 30)

    assert np.abs(y).max() <= 30
    assert np.all(np.abs(y - expected) <= 3e-7 * np.abs(expected) + 1e-37)
    assert y.tobytes() == native.test_softcap(ISAS[0], x, 30.0).tobytes()
