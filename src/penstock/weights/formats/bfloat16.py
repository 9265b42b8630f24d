"""bfloat16: for bf16 checkpoints. 2 B/weight; exact for what is bf16; BF16 arithmetic (that of TDPBF16PS).

Other values are rounded to the nearest bf16, ties to even: for fp16 and fp32 checkpoints this is lossy and
asked for. A panel of 32 columns, for K padded to 64:

    offset                                        holds
    kb*2048 + t*1024 + r*64 + c*4 + i*2           W[32p + 16t + c][32kb + 2r + i], bf16
        kb = 0 .. K/32-1   t = 0, 1   r = 0 .. 15   c = 0 .. 15   i = 0, 1

A row of 64 bytes is two K of sixteen columns: as fp32, `v << 16` is the even K and `v & 0xffff0000` the odd
one; sixteen rows are one tile of AMX.
"""

from dataclasses import dataclass
from typing import ClassVar

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from penstock.weights.format import FORMATS, K_MULTIPLE, padded, round_up


@dataclass(frozen=True, slots=True)
class BFloat16:
    exact: ClassVar[bool] = True
    operands: ClassVar[tuple[str, ...]] = ("bfloat16",)
    name: str = "bfloat16"

    def bytes_per_weight(self, k: int) -> float:
        return 2 * round_up(k, K_MULTIPLE) / k

    def pack(self, w: NDArray[np.float32]) -> NDArray[np.uint8]:
        half = padded(w).astype(ml_dtypes.bfloat16).view(np.uint16)
        #                  p  t   c   kb                r   i  ->  p  kb t  r  c  i
        tiles = half.reshape(-1, 2, 16, half.shape[1] // 32, 16, 2).transpose(0, 3, 1, 4, 2, 5)
        return np.ascontiguousarray(tiles).reshape(-1).view(np.uint8)

    def unpack(self, packed: NDArray[np.uint8], n: int, k: int) -> NDArray[np.float32]:
        k_padded = round_up(k, K_MULTIPLE)
        tiles = packed.view(np.uint16).reshape(-1, k_padded // 32, 2, 16, 16, 2)
        half = tiles.transpose(0, 2, 4, 1, 3, 5).reshape(-1, k_padded)[:n, :k]
        return (half.astype(np.uint32) << 16).view(np.float32)


FORMATS.register("bfloat16")(BFloat16())
