"""MXFP4, as gpt-oss stores its experts: floats of four bits, a power of two for every 32 (OCP MX v1.0).

    <name>_blocks[E, N, K / 32, 16]     codes of E2M1, two in a byte, the first in the low half
    <name>_scales[E, N, K / 32]         the exponent of each 32, and 127

The codes of all experts become one CodedTensor called <name>_blocks. What the config says is left alone holds
no codes, so nothing hangs on that list.
"""

from collections.abc import Mapping
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from penstock.weights.coding import CodedRows
from penstock.weights.format import FORMATS
from penstock.weights.reader import CodedTensor, Tensor
from penstock.weights.safetensors_file import shown
from penstock.weights.scheme import SCHEMES, Config, bits_of, check_keys, matrix_of, refuse

READ: Final = {"quant_method"}
INERT: Final = {"modules_to_not_convert", "dequantize"}
GROUP: Final = 32


@SCHEMES.register("mxfp4")
class MXFP4:
    @staticmethod
    def rewrite(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
        check_keys(config, READ, INERT)
        found = dict(tensors)
        for name in tensors:
            if name.endswith("_blocks"):
                base = name.removesuffix("_blocks")
                found[name] = _stack(tensors, base)
                found.pop(f"{base}_scales", None)
        return found


def _stack(tensors: Mapping[str, Tensor], base: str) -> CodedTensor:
    blocks = matrix_of(tensors, f"{base}_blocks", ("uint8",), 4)
    scales = matrix_of(tensors, f"{base}_scales", ("uint8",), 3)
    experts, n, groups, width = blocks.shape
    if width != GROUP // 2 or scales.shape != (experts, n, groups):
        refuse(f"{shown(base)}: {list(scales.shape)} scales of blocks {list(blocks.shape)}", "shape_mismatch")
    rows = blocks.reshape(experts * n, groups * width)
    decode = partial(_rows, rows, scales.reshape(experts * n, groups))
    return CodedTensor((experts, n, groups * GROUP), "mxfp4", decode)


def _rows(blocks: NDArray[np.uint8], scales: NDArray[np.uint8], rows: slice) -> CodedRows:
    coding = FORMATS["mxfp4"].coding  # type: ignore[attr-defined]  # a coded one
    return CodedRows(coding, bits_of(blocks[rows], 4).view(np.int8), {"exponent": scales[rows]})
