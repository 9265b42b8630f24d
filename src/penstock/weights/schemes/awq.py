"""AWQ in its gemm order: codes and zero points packed along N. Lin et al. 2023, arXiv:2306.00978.

qweight[K, N / 8]    nibble i of qweight[k, m] is the code of column 8m + ORDER[i]
qzeros[G, N / 8]     likewise, the zero point itself
scales[G, N]         W[n, k] = scale * (code - zero)
"""

from collections.abc import Mapping
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
    group_size,
    half_scales,
    matrix_of,
    refuse,
    spread,
)

ORDER: Final = (0, 2, 4, 6, 1, 3, 5, 7)
PLACE: Final = np.argsort(ORDER)  # column of eight -> its nibble
MIDDLE: Final = 8
READ: Final = {"quant_method", "bits", "w_bit", "group_size", "q_group_size", "version", "zero_point"}
INERT: Final = {
    "modules_to_not_convert", "backend", "do_fuse", "fuse_max_seq_len", "modules_to_fuse", "exllama_config",
}  # fmt: skip


@SCHEMES.register("awq")
class AWQ:
    @staticmethod
    def rewrite(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
        check_keys(config, READ, INERT)
        bits, version = config.get("bits", config.get("w_bit")), config.get("version", "gemm")
        if bits != 4:
            refuse(f"{shown(bits)} bits; 4 are read")
        if not isinstance(version, str) or version.lower() != "gemm":
            refuse(f"version {shown(version)}; gemm is read")
        if config.get("zero_point", True) is not True:
            refuse("zero_point is false; checkpoints with zero points are read")
        sizes = {"group_size": config.get("group_size", config.get("q_group_size"))}
        found = dict(tensors)
        for name in tensors:
            if name.endswith(".qweight"):
                base = name.removesuffix("qweight")
                found[f"{base}weight"] = _matrix(tensors, base, sizes)
                for part in ("qweight", "qzeros", "scales"):
                    del found[base + part]
        return found


def _nibbles(words: NDArray[Any]) -> NDArray[np.uint8]:
    """[R, N / 8] -> [R, N], in the order of columns."""
    eights = bits_of(words, 4).reshape(len(words), -1, 8)
    return eights[:, :, PLACE].reshape(len(words), -1)


def _matrix(tensors: Mapping[str, Tensor], base: str, config: Config) -> CodedTensor:
    qweight = matrix_of(tensors, f"{base}qweight", ("int32",), 2)
    k, n = qweight.shape[0], qweight.shape[1] * 8
    group = group_size(config, k)
    groups = -(-k // group)
    scales = matrix_of(tensors, f"{base}scales", ("float16", "bfloat16", "float32"), 2)
    zeros = _nibbles(matrix_of(tensors, f"{base}qzeros", ("int32",), 2))
    if scales.shape != (groups, n) or zeros.shape != (groups, n):
        refuse(f"{shown(base)}: scales {list(scales.shape)}, not {groups} x {n}", "shape_mismatch")
    zero, kept = spread(zeros.astype(np.int8) - np.int8(MIDDLE), group, base)
    scale, _ = spread(half_scales(scales, base), group, base)
    name = f"int4_g{kept}_zero"
    return CodedTensor((n, k), name, partial(_rows, qweight, scale, zero, name))


def _rows(
    qweight: NDArray[Any], scale: NDArray[np.float16], zero: NDArray[np.int8], name: str, rows: slice
) -> CodedRows:
    first, last = rows.start // 8, -(-rows.stop // 8)
    codes = _nibbles(qweight[:, first:last])[:, rows.start - 8 * first : rows.stop - 8 * first]
    coding = FORMATS[name].coding  # type: ignore[attr-defined]  # a coded one
    signed = np.ascontiguousarray(codes.T).astype(np.int8) - np.int8(MIDDLE)
    both: dict[str, NDArray[Any]] = {"scale": scale, "zero": zero}
    parts = {k: np.ascontiguousarray(v[:, rows].T) for k, v in both.items()}
    return CodedRows(coding, signed, parts)
