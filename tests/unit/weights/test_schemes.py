"""GPTQ and AWQ checkpoints: every weight is what the published unpacking makes of the same tensors."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from penstock.errors import ModelLoadError
from penstock.weights.format import FORMATS
from penstock.weights.reader import Checkpoint, CodedTensor
from penstock.weights.scheme import with_codes

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def random_words(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-(2**31), 2**31, shape).astype(np.int32)


def scales_of(rng: np.random.Generator, groups: int, n: int) -> np.ndarray:
    return (rng.random((groups, n)) / 64 + 0.001).astype(np.float16)


def gptq_tensors(bits: int, k: int, n: int, group: int, *, zero: int | None = None) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([bits, k, n])
    groups = -(-k // group)
    zeros = random_words(rng, groups, n * bits // 32)
    if bits == 8:
        zeros &= 0x7F7F7F7F  # a stored 255 would mean 256
    if zero is not None:
        word = sum(zero << (bits * i) for i in range(32 // bits))
        zeros = np.full_like(zeros, np.uint32(word).view(np.int32))
    return {
        "m.qweight": random_words(rng, k * bits // 32, n),
        "m.qzeros": zeros,
        "m.scales": scales_of(rng, groups, n),
        "m.g_idx": (np.arange(k) // group).astype(np.int32),
        "m.bias": np.zeros(n, np.float16),
    }


def gptq_values(t: dict[str, np.ndarray], bits: int, added: int) -> np.ndarray:
    """As AutoGPTQ's QuantLinear unpacks: shifts, one code at a time."""
    per_word, mask = 32 // bits, (1 << bits) - 1
    words, zeros = t["m.qweight"].view(np.uint32), t["m.qzeros"].view(np.uint32)
    k, n = len(words) * per_word, words.shape[1]
    w = np.empty((n, k), np.float32)
    for at in range(k):
        g = int(t["m.g_idx"][at])
        for column in range(n):
            code = int(words[at // per_word, column]) >> (bits * (at % per_word)) & mask
            zero = (int(zeros[g, column // per_word]) >> (bits * (column % per_word)) & mask) + added
            w[column, at] = np.float32(t["m.scales"][g, column]) * np.float32(code - zero)
    return w


def awq_values(t: dict[str, np.ndarray], group: int) -> np.ndarray:
    words, zeros = t["m.qweight"].view(np.uint32), t["m.qzeros"].view(np.uint32)
    k, n = len(words), words.shape[1] * 8
    w = np.empty((n, k), np.float32)
    for at in range(k):
        for m in range(n // 8):
            for i in range(8):
                column = 8 * m + AWQ_ORDER[i]
                code = int(words[at, m]) >> (4 * i) & 15
                zero = int(zeros[at // group, m]) >> (4 * i) & 15
                w[column, at] = np.float32(t["m.scales"][at // group, column]) * np.float32(code - zero)
    return w


def read(tensors: dict[str, np.ndarray], config: dict[str, object]) -> CodedTensor:
    found = with_codes(Checkpoint(tensors, ""), config).tensors
    assert not any("qweight" in name or "scales" in name for name in found)
    matrix = found["m.weight"]
    assert isinstance(matrix, CodedTensor)
    return matrix


def gptq(**more: object) -> dict[str, object]:
    return {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False, **more}


def close(matrix: CodedTensor, expected: np.ndarray) -> None:
    """The codes and scales are exact; s * c - s * z is rounded once more than s * (c - z)."""
    n, k = matrix.shape
    coded = matrix.decode(slice(0, n))
    scale = np.repeat(coded.scale(), coded.coding.group, axis=1)[:, :k]
    zero = (
        np.repeat(coded.parts["zero"].astype(np.float32), coded.coding.group, axis=1)[:, :k]
        if ("zero" in coded.parts)
        else np.float32(0)
    )
    assert (scale * (coded.codes - zero) == expected).all()
    packed = coded.coding.pack(coded)
    np.testing.assert_allclose(FORMATS[matrix.format].unpack(packed, n, k), expected, atol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("layout", "added"), [("gptq", 1), ("gptq_v2", 0)])
def test_gptq_weights_are_their_own_codes(bits, layout, added):
    tensors = gptq_tensors(bits, 64, 40, 32)
    matrix = read(tensors, gptq(bits=bits, checkpoint_format=layout))

    assert matrix.format == f"int{bits}_g32_zero"
    close(matrix, gptq_values(tensors, bits, added))


@pytest.mark.parametrize(("bits", "stored"), [(4, 7), (8, 127)])
def test_symmetric_gptq_needs_no_zero_points(bits, stored):
    tensors = gptq_tensors(bits, 128, 32, 64, zero=stored)
    matrix = read(tensors, gptq(bits=bits, group_size=64, sym=True))

    assert matrix.format == f"int{bits}_g64"
    close(matrix, gptq_values(tensors, bits, 1))


@pytest.mark.parametrize("group_size", [-1, 256])
def test_wide_groups_are_several_of_128_alike(group_size):
    tensors = gptq_tensors(4, 256, 32, 256)
    matrix = read(tensors, gptq(group_size=group_size))

    assert matrix.format == "int4_g128_zero"
    close(matrix, gptq_values(tensors, 4, 1))


def awq_tensors(k: int, n: int, group: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([k, n])
    return {
        "m.qweight": random_words(rng, k, n // 8),
        "m.qzeros": random_words(rng, k // group, n // 8),
        "m.scales": scales_of(rng, k // group, n),
    }


def test_awq_weights_are_their_own_codes():
    tensors = awq_tensors(64, 48, 32)
    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "GEMM", "zero_point": True}
    matrix = read(tensors, config)
    whole = matrix.decode(slice(0, 48))

    close(matrix, awq_values(tensors, 32))
    assert (matrix.decode(slice(3, 21)).codes == whole.codes[3:21]).all()


def test_bfloat16_scales_are_taken_where_fp16_holds_them():
    tensors = gptq_tensors(4, 64, 32, 32)
    tensors["m.scales"] = np.full((2, 32), 0.0078125, ml_dtypes.bfloat16)
    read(tensors, gptq())
    tensors["m.scales"] = np.full((2, 32), 1e-9, ml_dtypes.bfloat16)
    with pytest.raises(ModelLoadError, match="fp16 does not hold"):
        read(tensors, gptq())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"quant_method": "marvel"}, "marvel"),
        ({"bits": 3}, "3 bits"),
        ({"checkpoint_format": "marlin"}, "marlin"),
        ({"surprise": 1}, "surprise"),
        ({"group_size": 48}, "48"),
        ({"group_size": "all"}, "group_size"),
        ({"group_size": 16}, r"scales|groups"),
    ],
)
def test_what_is_not_read_is_refused_by_name(change, match):
    with pytest.raises(ModelLoadError, match=match):
        read(gptq_tensors(4, 96, 32, 48 if change.get("group_size") == 48 else 32), gptq(**change))


def test_columns_in_order_of_activation_are_refused():
    tensors = gptq_tensors(4, 64, 32, 32)
    tensors["m.g_idx"] = tensors["m.g_idx"][::-1].copy()
    with pytest.raises(ModelLoadError, match="desc_act"):
        read(tensors, gptq(desc_act=True))


@pytest.mark.parametrize("name", ["deepseek-coder-6.7b-instruct-awq", "llama-3.1-70b-instruct-gptq-int4"])
def test_published_configs_are_understood(name):
    path = Path(__file__).parents[2] / "fixtures" / "checkpoints" / name / "config.json"
    config = json.loads(path.read_text())["quantization_config"]

    assert with_codes(Checkpoint({}, ""), config).tensors == {}


@pytest.mark.parametrize("lost", ["qzeros", "scales"])
def test_a_missing_part_is_refused(lost):
    tensors = gptq_tensors(4, 64, 32, 32)
    del tensors[f"m.{lost}"]
    with pytest.raises(ModelLoadError, match=lost):
        read(tensors, gptq())


FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def mxfp4_tensors(experts: int, n: int, k: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([experts, n, k])
    return {
        "m.gate_up_proj_blocks": rng.integers(0, 256, (experts, n, k // 32, 16), np.uint8),
        "m.gate_up_proj_scales": rng.integers(1, 250, (experts, n, k // 32), np.uint8),
        "m.bias": np.zeros((experts, n), np.float32),
    }


def mxfp4_values(t: dict[str, np.ndarray]) -> np.ndarray:
    """As transformers' convert_moe_packed_tensors: the low half of a byte comes first."""
    blocks, scales = t["m.gate_up_proj_blocks"], t["m.gate_up_proj_scales"]
    table = np.array(FP4_VALUES, np.float64)
    pairs = np.stack([table[blocks & 15], table[blocks >> 4]], axis=-1).reshape(*blocks.shape[:3], 32)
    wide = np.ldexp(pairs, scales.astype(np.int32)[..., None] - 127)
    return wide.reshape(*blocks.shape[:2], -1)


def test_mxfp4_experts_are_what_their_codes_and_exponents_say():
    tensors = mxfp4_tensors(3, 10, 96)
    found = with_codes(Checkpoint(tensors, ""), {"quant_method": "mxfp4"}).tensors
    assert set(found) == {"m.gate_up_proj_blocks", "m.bias"}
    stack = found["m.gate_up_proj_blocks"]
    assert isinstance(stack, CodedTensor)
    assert (stack.shape, stack.format) == ((3, 10, 96), "mxfp4")
    expected = mxfp4_values(tensors)
    for expert in range(3):
        for rows in (slice(0, 9, 2), slice(1, 10, 2), slice(4, 7)):  # gates and ups in turns; three rows
            part = stack[expert, rows]
            values = part.decode(slice(0, part.shape[0])).values()
            assert (values.astype(np.float64) == expected[expert, rows]).all()
    odd = stack[2, slice(1, 10, 2)]
    assert (odd.decode(slice(2, 4)).values() == expected[2, [5, 7]]).all()
    packed = FORMATS["mxfp4"].coding.pack(odd.decode(slice(0, 5)))
    assert (FORMATS["mxfp4"].unpack(packed, 5, 96) == expected[2, 1::2]).all()


def test_an_exponent_that_stands_for_no_number_is_told():
    tensors = mxfp4_tensors(1, 2, 64)
    tensors["m.gate_up_proj_scales"][0, 1, 1] = 255
    stack = with_codes(Checkpoint(tensors, ""), {"quant_method": "mxfp4"}).tensors["m.gate_up_proj_blocks"]
    assert isinstance(stack, CodedTensor)
    assert not stack[0, slice(0, 2)].decode(slice(0, 2)).is_finite()
    assert stack[0, slice(0, 1)].decode(slice(0, 1)).is_finite()


@pytest.mark.parametrize(
    ("change", "code", "why"),
    [
        ({"m.gate_up_proj_scales": None}, "missing_tensor", "not in the checkpoint"),
        ({"m.gate_up_proj_scales": np.zeros((2, 4, 3), np.uint8)}, "shape_mismatch", "scales of blocks"),
        ({"m.gate_up_proj_blocks": np.zeros((2, 4, 2, 8), np.uint8)}, "shape_mismatch", "scales of blocks"),
        ({"m.gate_up_proj_blocks": np.zeros((2, 4, 2, 16), np.int8)}, "shape_mismatch", "no codes"),
    ],
)
def test_mxfp4_of_other_shapes_is_refused(change, code, why):
    tensors = {k: v for k, v in (mxfp4_tensors(2, 4, 64) | change).items() if v is not None}
    with pytest.raises(ModelLoadError, match=why) as caught:
        with_codes(Checkpoint(tensors, ""), {"quant_method": "mxfp4"})
    assert caught.value.code == code


def test_mxfp4_with_a_key_that_nobody_knows_is_refused():
    with pytest.raises(ModelLoadError, match="bits"):
        with_codes(Checkpoint({}, ""), {"quant_method": "mxfp4", "bits": 6})
