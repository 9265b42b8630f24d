"""compressed-tensors checkpoints: every weight is what the library's own unpacking makes of it."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from penstock.errors import ModelLoadError
from penstock.weights.format import FORMATS
from penstock.weights.reader import Checkpoint, CodedTensor
from penstock.weights.scheme import with_codes

Tensors = dict[str, np.ndarray]


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """As pack_to_int32: code + 2^(bits - 1), the first of a row in the lowest bits, rows padded with 0."""
    per_word = 32 // bits
    unsigned = (codes.astype(np.int64) + (1 << (bits - 1))).astype(np.uint32)
    wide = np.pad(unsigned, ((0, 0), (0, -codes.shape[1] % per_word)))
    words = np.zeros((len(codes), wide.shape[1] // per_word), np.uint32)
    for i in range(per_word):
        words |= wide[:, i::per_word] << np.uint32(bits * i)
    return words.view(np.int32)


def made(
    bits: int, group: int | None, *, n: int = 40, k: int = 192, symmetric: bool = True, pack: bool = True
) -> tuple[Tensors, np.ndarray]:
    """The tensors of a matrix `m`, and its weights. `group` None: one scale for each row."""
    rng = np.random.default_rng([bits, n, k])
    span = group or k
    groups = -(-k // span)
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    codes = rng.integers(low, high + 1, (n, k)).astype(np.int8)
    scale = (rng.random((n, groups)) / 64 + 0.001).astype(ml_dtypes.bfloat16)
    zero = rng.integers(low, high + 1, (n, groups)).astype(np.int8)
    tensors: Tensors = {"m.weight_scale": scale, "m.bias": np.zeros(n, ml_dtypes.bfloat16)}
    if pack:
        tensors |= {"m.weight_packed": packed(codes, bits), "m.weight_shape": np.array([n, k])}
    else:
        tensors["m.weight"] = codes
    if not symmetric:
        tensors["m.weight_zero_point"] = packed(zero.T, bits).T.copy() if pack else zero
    wide = codes.astype(np.float64)
    if not symmetric:
        wide -= np.repeat(zero, span, axis=1)[:, :k]
    return tensors, wide * np.repeat(scale.astype(np.float64), span, axis=1)[:, :k]


def config(bits: int, group: int | None, *, symmetric: bool = True, **more: object) -> dict[str, Any]:
    weights = {
        "num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group" if group else "channel",
        "group_size": group, "block_structure": None, "dynamic": False, "actorder": None,
        "observer": "minmax", "observer_kwargs": {},
    }  # fmt: skip
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": weights,
                "input_activations": None,
                "output_activations": None,
            }
        },
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "sparsity_config": {},
        "transform_config": {},
        "version": "0.13.0",
    } | more


def read(tensors: Tensors, asked: dict[str, Any]) -> CodedTensor:
    found = with_codes(Checkpoint(tensors, ""), asked).tensors
    assert set(found) == {"m.weight", "m.bias"}
    matrix = found["m.weight"]
    assert isinstance(matrix, CodedTensor)
    return matrix


def close(matrix: CodedTensor, expected: np.ndarray) -> None:
    """Codes, scales and zero points are exact; s * c - s * z is rounded once more than s * (c - z)."""
    n, k = matrix.shape
    coded = matrix.decode(slice(0, n))
    group = coded.coding.group or k
    wide = coded.codes.astype(np.float64)
    if "zero" in coded.parts:
        wide -= np.repeat(coded.parts["zero"], group, axis=1)[:, :k]
    assert (wide * np.repeat(coded.scale(), group, axis=1)[:, :k] == expected).all()
    assert (matrix.decode(slice(3, 21)).codes == coded.codes[3:21]).all()
    stored = coded.coding.pack(coded)
    np.testing.assert_allclose(FORMATS[matrix.format].unpack(stored, n, k), expected, atol=1e-5)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_packed_codes_in_groups_are_their_own(bits, group, symmetric):
    tensors, expected = made(bits, group, k=256, symmetric=symmetric)
    matrix = read(tensors, config(bits, group, symmetric=symmetric))

    assert matrix.format == f"int{bits}_g{group}{'' if symmetric else '_zero'}"
    close(matrix, expected)


@pytest.mark.parametrize(
    ("bits", "symmetric", "name"),
    [(4, True, "int4_g128"), (4, False, "int4_g128_zero"), (8, True, "int8"), (8, False, "int8_g128_zero")],
)
def test_one_scale_for_each_row_is_groups_alike_or_that_of_a_channel(bits, symmetric, name):
    tensors, expected = made(bits, None, symmetric=symmetric)
    matrix = read(tensors, config(bits, None, symmetric=symmetric))

    assert matrix.format == name
    close(matrix, expected)


@pytest.mark.parametrize("k", [100, 60])
def test_rows_that_do_not_fill_their_last_word_are_cut(k):
    tensors, expected = made(4, None, n=33, k=k)

    close(read(tensors, config(4, None)), expected)


def test_a_group_as_wide_as_the_rows_is_one_scale():
    tensors, expected = made(4, 128, k=128, symmetric=False)

    close(read(tensors, config(4, 128, symmetric=False)), expected)


@pytest.mark.parametrize("layout", ["int-quantized", "naive-quantized"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_bytes_that_are_not_packed_are_their_own_codes(layout, symmetric):
    tensors, expected = made(8, None, pack=False, symmetric=symmetric)
    matrix = read(tensors, config(8, None, symmetric=symmetric, format=layout))

    assert matrix.format == ("int8" if symmetric else "int8_g128_zero")
    close(matrix, expected)


def test_a_scale_that_fp16_does_not_hold_is_kept_for_a_channel():
    tensors, _ = made(8, None, pack=False)
    tensors["m.weight_scale"] = (np.arange(1, 41, dtype=np.float32) * np.float32(1e-9 / 3))[:, None]
    matrix = read(tensors, config(8, None, format="int-quantized"))

    assert (matrix.decode(slice(0, 40)).scale() == tensors["m.weight_scale"]).all()


def test_one_scale_for_a_tensor_is_that_of_every_row():
    tensors, _ = made(8, None, pack=False)
    tensors["m.weight_scale"] = np.array([0.25], np.float32)
    asked = config(8, None, format="int-quantized")
    asked["config_groups"]["group_0"]["weights"]["strategy"] = "tensor"

    assert (read(tensors, asked).decode(slice(0, 40)).values() == 0.25 * tensors["m.weight"]).all()


def test_zero_points_of_0_are_left_out():
    tensors, expected = made(8, None, pack=False)
    tensors["m.weight_zero_point"] = np.zeros((40, 1), np.int8)

    close(read(tensors, config(8, None, format="int-quantized")), expected)


def test_groups_of_columns_in_order_are_read_and_others_refused():
    tensors, expected = made(4, 64)
    tensors["m.weight_g_idx"] = (np.arange(192) // 64).astype(np.int32)
    close(read(dict(tensors), config(4, 64)), expected)
    tensors["m.weight_g_idx"] = tensors["m.weight_g_idx"][::-1].copy()
    with pytest.raises(ModelLoadError, match="actorder"):
        read(tensors, config(4, 64))


def test_each_matrix_may_be_of_another_group():
    four, eight = made(4, 32)[0], made(8, None)[0]
    tensors = four | {name.replace("m.", "other."): tensor for name, tensor in eight.items()}
    both = config(4, 32)
    both["config_groups"]["group_1"] = config(8, None)["config_groups"]["group_0"]
    found = with_codes(Checkpoint(tensors, ""), both).tensors

    assert {name: t.format for name, t in found.items() if isinstance(t, CodedTensor)} == {
        "m.weight": "int4_g32",
        "other.weight": "int8",
    }


def args(**change: object) -> dict[str, Any]:
    asked = config(4, 32)
    asked["config_groups"]["group_0"]["weights"].update(change)
    return asked


def group(**change: object) -> dict[str, Any]:
    asked = config(4, 32)
    asked["config_groups"]["group_0"].update(change)
    return asked


def test_activations_coded_anew_in_each_row_are_not_coded_at_all():
    tensors, expected = made(8, None, pack=False)
    asked = config(8, None, format="int-quantized")
    dynamic = {"num_bits": 8, "type": "int", "strategy": "token", "symmetric": True, "dynamic": True}
    asked["config_groups"]["group_0"]["input_activations"] = dynamic

    close(read(tensors, asked), expected)


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        (config(4, 32, format="float-quantized"), "float-quantized"),
        (config(4, 32, format="marlin-24"), "marlin-24"),
        (config(4, 32, kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme"),
        (config(4, 32, sparsity_config={"format": "sparse-24-bitmask"}), "sparsity_config"),
        (config(4, 32, transform_config={"config_groups": {"u": {}}}), "transform_config"),
        (config(4, 32, surprise=1), "surprise"),
        (config(4, 32, config_groups={}), "config_groups"),
        (config(4, 32, config_groups={"W4A16": ["Linear"]}), "W4A16"),
        (args(num_bits=3), "3 bits"),
        (args(type="float", num_bits=8), "type float"),
        (args(strategy="block"), "block"),
        (args(group_size=0), "group_size"),
        (args(surprise=1), "surprise"),
        (group(weights=None), "without weights"),
        (group(input_activations={"num_bits": 8, "dynamic": False}), "input_activations"),
        (group(input_activations={"num_bits": 4, "dynamic": "local"}), "input_activations"),
        (args(group_size=64), "config_groups"),
        (args(num_bits=8), "config_groups"),
        (args(symmetric=False), "without zero points"),
    ],
)
def test_what_is_not_read_is_refused_by_name(asked, match):
    with pytest.raises(ModelLoadError, match=match):
        read(made(4, 32)[0], asked)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"m.weight_scale": None}, "weight_scale"),
        ({"m.weight_shape": None}, "weight_shape"),
        ({"m.weight_shape": np.array([40, -192])}, "weight_shape"),
        ({"m.weight_shape": np.array([40, 1 << 40])}, "weight_shape"),
        ({"m.weight_shape": np.array([40, 193])}, "config_groups"),
        ({"m.weight_scale": np.ones((39, 6), np.float16)}, "scales"),
        ({"m.weight_scale": np.full((40, 6), 1e-9, np.float32)}, "fp16 does not hold"),
        ({"m.weight_zero_point": np.ones((40, 5), np.int8)}, "zero points"),
        ({"m.weight_zero_point": np.ones((40, 6), np.int8)}, "with zero points"),
        ({"m.weight_packed": np.zeros((40, 24), np.int64)}, "weight_packed"),
    ],
)
def test_damaged_tensors_are_refused(change, match):
    tensors = {name: t for name, t in (made(4, 32)[0] | change).items() if t is not None}
    with pytest.raises(ModelLoadError, match=match):
        read(tensors, config(4, 32))
