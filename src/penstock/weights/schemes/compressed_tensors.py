"""compressed-tensors, as llm-compressor writes it: weights of 4 or 8 bits, per group, channel or tensor.

    pack-quantized     <m>.weight_packed[N, K * bits / 32] int32: the first k in the lowest bits, stored as
                       code + 2^(bits - 1); <m>.weight_shape[2]: N and K
    int-quantized      <m>.weight[N, K] int8: the codes; naive-quantized is the same
    both               <m>.weight_scale[N, G]   G: groups of K, 1 for a channel; [1]: a tensor
                       <m>.weight_zero_point[N, G] int8, or packed along N as the codes are
                       <m>.weight_g_idx[K]: the group of each k; only k / group_size is read
    W[n, k] = scale * (code - zero)

The tensors say all of this themselves; what they say must be in one of the config's groups, so no pattern of
module names is tried. Activations that the config would code anew in each row are not approximated: bf16
multiplies the codes. Whatever has ranges of activations fixed, floats of 8 or 4 bits for weights, sparse or
turned matrices, or codes in its cache, is refused by name.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from penstock.weights.coding import CodedRows
from penstock.weights.format import FORMATS
from penstock.weights.reader import CodedTensor, Tensor
from penstock.weights.safetensors_file import shown
from penstock.weights.scheme import (
    SCHEMES,
    Config,
    bits_of,
    check_keys,
    half_scales,
    matrix_of,
    refuse,
    spread,
)

FORMATS_READ: Final = ("pack-quantized", "int-quantized", "naive-quantized")
READ: Final = {
    "quant_method", "format", "config_groups", "kv_cache_scheme", "sparsity_config", "transform_config",
}  # fmt: skip
INERT: Final = {"ignore", "quantization_status", "global_compression_ratio", "version", "run_compressed"}
GROUP_READ: Final = {"weights", "input_activations", "output_activations", "format"}
ARGS_READ: Final = {"num_bits", "type", "symmetric", "strategy", "group_size", "dynamic", "block_structure"}
ARGS_INERT: Final = {"observer", "observer_kwargs", "actorder", "scale_dtype", "zp_dtype"}
FLOATS: Final = ("float16", "bfloat16", "float32")
PARTS: Final = ("weight_packed", "weight_shape", "weight_scale", "weight_zero_point", "weight_g_idx")


@dataclass(frozen=True, slots=True)
class Weights:
    """How the matrices of a config group are coded."""

    bits: int
    group: int  # K that share a scale; 0: all
    is_symmetric: bool


@SCHEMES.register("compressed-tensors")
class CompressedTensors:
    @staticmethod
    def rewrite(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
        check_keys(config, READ, INERT)
        for key, what in (
            ("kv_cache_scheme", "codes for keys and values"),
            ("sparsity_config", "sparse matrices"),
            ("transform_config", "matrices that are turned while running"),
        ):
            asked = config.get(key) or {}
            if not isinstance(asked, Mapping) or (asked.get("format") != "dense" and any(asked.values())):
                refuse(f"{key} asks for {what}, which are not read")
        known = set(_groups(config))
        found = dict(tensors)
        for name, tensor in tensors.items():
            base = name.removesuffix("weight_packed").removesuffix("weight")
            is_plain = name.endswith(".weight") and isinstance(tensor, np.ndarray) and tensor.dtype == np.int8
            if not is_plain and not name.endswith(".weight_packed"):
                continue
            matrix = _read(tensors, base, known, is_packed=not is_plain)
            for part in PARTS:
                found.pop(base + part, None)
            found[f"{base}weight"] = matrix
        return found


def _groups(config: Config) -> Iterator[Weights]:
    groups = config.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        refuse("config_groups is missing; it says how the codes are meant")
    for name, group in groups.items():
        if not isinstance(group, Mapping):
            refuse(f"config group {shown(name)} is a preset's name; groups that are spelled out are read")
        check_keys(group, GROUP_READ, {"targets"})
        layout = group.get("format") or config.get("format")
        if layout not in FORMATS_READ:
            refuse(f"format {shown(layout)}; {', '.join(FORMATS_READ)} are read")
        for key in ("input_activations", "output_activations"):
            if isinstance(args := group.get(key), Mapping) and args.get("dynamic") is not True:
                refuse(f"{key} with fixed ranges; coded weights alone and dynamic activations are read")
        yield _weights(group.get("weights"))


def _weights(args: object) -> Weights:
    if not isinstance(args, Mapping):
        refuse("a config group without weights; groups of coded weights are read")
    check_keys(args, ARGS_READ, ARGS_INERT)
    bits, kind, group = args.get("num_bits", 8), args.get("type", "int"), args.get("group_size")
    if kind != "int" or bits not in (4, 8):
        refuse(f"weights of type {shown(kind)} and {shown(bits)} bits; int of 4 and 8 are read")
    strategy = args.get("strategy") or ("tensor" if group is None else "channel" if group == -1 else "group")
    if strategy not in ("group", "channel", "tensor"):
        refuse(f"strategy {shown(strategy)}; group, channel and tensor are read")
    if strategy == "group" and (type(group) is not int or group < 1):
        refuse(f"group_size is {shown(group)}; it must be a whole number")
    return Weights(bits, int(group or 0) if strategy == "group" else 0, args.get("symmetric", True) is True)


def _read(tensors: Mapping[str, Tensor], base: str, known: set[Weights], *, is_packed: bool) -> CodedTensor:
    if is_packed:
        stored = matrix_of(tensors, f"{base}weight_packed", ("int32",), 2)
        n, k = _shape(tensors, base)
        fits = {w for w in known if stored.shape == (n, -(-k * w.bits // 32))}
    else:
        stored = matrix_of(tensors, f"{base}weight", ("int8",), 2)
        n, k = stored.shape
        fits = {w for w in known if w.bits == 8}
    scale = _scales(tensors, base, n)
    num_groups = scale.shape[1]
    fits = {w for w in fits if num_groups == (-(-k // w.group) if w.group else 1)}
    has_zeros = f"{base}weight_zero_point" in tensors
    zero = _zeros(tensors, base, next(iter(fits)).bits, scale.shape) if fits and has_zeros else None
    fits = {w for w in fits if (zero is None if w.is_symmetric else has_zeros)}
    if len({(w.bits, w.group) for w in fits}) != 1:
        refuse(
            f"{shown(base)}: {n} x {k} codes in words of {list(stored.shape)}, {num_groups} scales a row, "
            f"{'with' if has_zeros else 'without'} zero points, are not what one of config_groups says"
        )
    (weights, *_) = fits
    order = tensors.get(f"{base}weight_g_idx")
    expected = np.arange(k) // (weights.group or k)
    is_ordered = not isinstance(order, np.ndarray) or (order == -1).all() or np.array_equal(order, expected)
    if num_groups > 1 and not is_ordered:
        refuse(f"{shown(base)}: columns in order of activation (actorder) are not read; quantize without")
    return _coded(base, stored, (n, k), weights.bits, weights.group if num_groups > 1 else 0, scale, zero)


def _coded(
    base: str,
    stored: NDArray[Any],
    shape: tuple[int, int],
    bits: int,
    group: int,
    scale: NDArray[Any],
    zero: NDArray[np.int8] | None,
) -> CodedTensor:
    """One scale for all of K is groups of 128 alike, but for bytes without zeros, which have a format."""
    k = shape[1]
    parts: dict[str, NDArray[Any]]
    if bits == 8 and group == 0 and zero is None:
        name, parts = "int8", {"column": scale.astype(np.float32)}
    else:
        wide = group or -(-k // 128) * 128
        by_group, kept = spread(half_scales(scale, base).T, wide, base)
        name, parts = f"int{bits}_g{kept}", {"scale": by_group.T}
        if zero is not None:
            name, parts["zero"] = f"{name}_zero", spread(zero.T, wide, base)[0].T
    return CodedTensor(shape, name, partial(_rows, stored, bits, k, parts, name))


def _rows(
    stored: NDArray[Any], bits: int, k: int, parts: Mapping[str, NDArray[Any]], name: str, rows: slice
) -> CodedRows:
    codes = stored[rows] if stored.dtype == np.int8 else _signed(bits_of(stored[rows], bits), bits)[:, :k]
    coding = FORMATS[name].coding  # type: ignore[attr-defined]  # a coded one
    return CodedRows(coding, codes, {part: values[rows] for part, values in parts.items()})


def _signed(codes: NDArray[np.uint8], bits: int) -> NDArray[np.int8]:
    return (codes.astype(np.int16) - (1 << (bits - 1))).astype(np.int8)


def _shape(tensors: Mapping[str, Tensor], base: str) -> tuple[int, int]:
    shape = matrix_of(tensors, f"{base}weight_shape", ("int64", "int32"), 1)
    if shape.shape != (2,) or not (shape > 0).all() or not (shape < 2**31).all():
        refuse(f"{shown(base)}weight_shape is {list(shape)[:4]}; it must be N and K", "shape_mismatch")
    return int(shape[0]), int(shape[1])


def _scales(tensors: Mapping[str, Tensor], base: str, n: int) -> NDArray[Any]:
    """[N, G]."""
    found = tensors.get(f"{base}weight_scale")
    if isinstance(found, np.ndarray) and found.size == 1:
        scale = matrix_of(tensors, f"{base}weight_scale", FLOATS, found.ndim)
        return np.repeat(scale.reshape(1, 1), n, axis=0)
    scale = matrix_of(tensors, f"{base}weight_scale", FLOATS, 2)
    if scale.shape[0] != n:
        refuse(f"{shown(base)}: scales {list(scale.shape)} of {n} rows", "shape_mismatch")
    return scale


def _zeros(
    tensors: Mapping[str, Tensor], base: str, bits: int, shape: tuple[int, ...]
) -> NDArray[np.int8] | None:
    found = tensors.get(f"{base}weight_zero_point")
    if not isinstance(found, np.ndarray):
        return None
    if found.size == 1:
        found = np.repeat(found.reshape(1, 1), shape[0], axis=0)
    elif found.dtype == np.int32 and found.shape == (-(-shape[0] * bits // 32), shape[1]):
        found = _signed(bits_of(np.ascontiguousarray(found.T), bits), bits).T[: shape[0]]
    if found.dtype != np.int8 or found.shape != shape:
        refuse(f"{shown(base)}: zero points {found.dtype} {list(found.shape)}", "shape_mismatch")
    return np.ascontiguousarray(found) if found.any() else None
