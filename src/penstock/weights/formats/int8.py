"""int8: one signed byte per weight, one fp32 scale per output column. 1 B/weight; lossy; INT arithmetic.

    scale[n] = amax[n] / 127        amax[n]: largest |w[n, k]|; 0 where it is below 2**-118
    code[n, k] = rne(w[n, k] / scale[n])        0 where the scale is 0
    w ~ code * scale        |error| <= scale / 2, and half an ulp of the product

A panel of 32 columns, for K padded to 64:

    offset                                        holds
    kb*2048 + t*1024 + r*64 + c*4 + i             code of W[32p + 16t + c][64kb + 4r + i], s8
        kb = 0 .. K/64-1   t = 0, 1   r = 0 .. 15   c = 0 .. 15   i = 0 .. 3
    32*K + 4*j                                    scale of column 32p + j, fp32, j = 0 .. 31

A row of 64 bytes is four K of sixteen columns: one operand of VPDPBUSD, one row of an AMX tile.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from penstock.weights.coding import CodedRows, Coding
from penstock.weights.format import CODE_OPERANDS, FORMATS, PANEL_COLUMNS

SMALLEST_AMAX = np.float32(2.0**-118)  # below it a scale would not be a normal number


@dataclass(frozen=True, slots=True)
class Int8:
    exact: ClassVar[bool] = False
    operands: ClassVar[tuple[str, ...]] = CODE_OPERANDS
    name: str = "int8"

    @property
    def coding(self) -> Coding:
        return Coding(8, 0, "channel")

    def bytes_per_weight(self, k: int) -> float:
        return self.coding.panel_bytes(k) / (PANEL_COLUMNS * k)

    def pack(self, w: NDArray[np.float32]) -> NDArray[np.uint8]:
        amax = np.abs(w).max(axis=1, keepdims=True)
        scale = np.where(amax < SMALLEST_AMAX, np.float32(0), amax / np.float32(127))
        code = np.rint(np.divide(w, scale, out=np.zeros_like(w), where=scale > 0)).astype(np.int8)
        return self.coding.pack(CodedRows(self.coding, code, {"column": scale}))

    def unpack(self, packed: NDArray[np.uint8], n: int, k: int) -> NDArray[np.float32]:
        return self.coding.unpack(packed, n, k).values()


FORMATS.register("int8")(Int8())
