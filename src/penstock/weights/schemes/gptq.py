"""GPTQ: codes packed along K, zero points along N. Frantar et al. 2022, arXiv:2210.17323.

    qweight[K * bits / 32, N]    code of (n, k): bits k % (32 / bits) * bits of qweight[k / (32 / bits), n]
    qzeros[G, N * bits / 32]     packed along N likewise; 1 less than the zero point, but in gptq_v2
    scales[G, N]                 W[n, k] = scale * (code - zero)
    g_idx[K]                     the group of each k; only k / group_size is read: columns sorted by
                                 importance (desc_act) are refused by name

Where every zero point is the middle, the format without zero points holds the matrix.
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

READ: Final = {"quant_method", "bits", "group_size", "desc_act", "sym", "checkpoint_format", "lm_head"}
INERT: Final = {
    "damp_percent", "damp_auto_increment", "static_groups", "true_sequential", "model_name_or_path",
    "model_file_base_name", "dataset", "tokenizer", "meta", "pack_dtype", "block_name_to_quantize",
    "module_name_preceding_first_block", "model_seqlen", "max_input_length", "batch_size", "pad_token_id",
    "use_exllama", "exllama_config", "use_cuda_fp16", "cache_block_outputs", "disable_exllama", "backend",
    "modules_in_block_to_quantize", "is_marlin_format", "quantizer", "mse", "act_group_aware", "hyb_act",
}  # fmt: skip


@SCHEMES.register("gptq")
class GPTQ:
    @staticmethod
    def rewrite(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
        check_keys(config, READ, INERT)
        bits, layout = config.get("bits"), config.get("checkpoint_format", "gptq")
        if bits not in (4, 8):
            refuse(f"{shown(bits)} bits; 4 and 8 are read")
        if layout not in ("gptq", "gptq_v2") or config.get("is_marlin_format"):
            refuse(f"checkpoint_format {shown(layout)}; gptq and gptq_v2 are read")
        found = dict(tensors)
        for name in tensors:
            if name.endswith(".qweight"):
                base = name.removesuffix("qweight")
                found[f"{base}weight"] = _matrix(tensors, base, config, bits, 0 if layout == "gptq_v2" else 1)
                for part in ("qweight", "qzeros", "scales", "g_idx"):
                    found.pop(base + part, None)
        return found


def _matrix(tensors: Mapping[str, Tensor], base: str, config: Config, bits: int, added: int) -> CodedTensor:
    qweight = matrix_of(tensors, f"{base}qweight", ("int32",), 2)
    k, n = qweight.shape[0] * 32 // bits, qweight.shape[1]
    group = group_size(config, k)
    groups = -(-k // group)
    scales = matrix_of(tensors, f"{base}scales", ("float16", "bfloat16", "float32"), 2)
    zeros = bits_of(matrix_of(tensors, f"{base}qzeros", ("int32",), 2), bits)
    if scales.shape != (groups, n) or zeros.shape != (groups, n):
        refuse(f"{shown(base)}: scales {list(scales.shape)}, not {groups} x {n}", "shape_mismatch")
    order = tensors.get(f"{base}g_idx")
    if isinstance(order, np.ndarray) and not np.array_equal(order, np.arange(k) // group):
        refuse(f"{shown(base)}: columns in order of activation (desc_act) are not read; quantize without")
    middle = 1 << (bits - 1)
    zero, kept = spread(zeros.astype(np.int16) + added - middle, group, base)
    scale, _ = spread(half_scales(scales, base), group, base)
    if zero.max() > 127:
        refuse(f"{shown(base)}: a zero point of 256, outside the range of 8 bits")
    is_symmetric = not zero.any()
    parts = {"scale": scale} if is_symmetric else {"scale": scale, "zero": zero.astype(np.int8)}
    name = f"int{bits}_g{kept}" if is_symmetric else f"int{bits}_g{kept}_zero"
    return CodedTensor((n, k), name, partial(_rows, qweight, parts, name, bits))


def _rows(
    qweight: NDArray[Any], parts: Mapping[str, NDArray[Any]], name: str, bits: int, rows: slice
) -> CodedRows:
    """`parts` are [groups, N]."""
    codes = bits_of(np.ascontiguousarray(qweight[:, rows].T), bits)
    signed = (codes.astype(np.int16) - (1 << (bits - 1))).astype(np.int8)
    coding = FORMATS[name].coding  # type: ignore[attr-defined]  # a coded one
    own = {part: np.ascontiguousarray(values[:, rows].T) for part, values in parts.items()}
    return CodedRows(coding, signed, own)
