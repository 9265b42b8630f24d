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

from penstock.weights.format import FORMATS, K_MULTIPLE, PANEL_COLUMNS, padded, round_up

SMALLEST_AMAX = np.float32(2.0**-118)  # below it a scale would not be a normal number


@dataclass(frozen=True, slots=True)
class Int8:
    exact: ClassVar[bool] = False
    name: str = "int8"

    def bytes_per_weight(self, k: int) -> float:
        return self._panel_bytes(k) / (PANEL_COLUMNS * k)

    def pack(self, w: NDArray[np.float32]) -> NDArray[np.uint8]:
        w = padded(w)
        n, k = w.shape
        amax = np.abs(w).max(axis=1, keepdims=True)
        scale = np.where(amax < SMALLEST_AMAX, np.float32(0), amax / np.float32(127))
        code = np.rint(np.divide(w, scale, out=np.zeros_like(w), where=scale > 0)).astype(np.int8)
        #                  p  t   c   kb       r   i  ->  p  kb t  r  c  i
        tiles = code.reshape(-1, 2, 16, k // 64, 16, 4).transpose(0, 3, 1, 4, 2, 5)
        panels = np.empty((n // PANEL_COLUMNS, self._panel_bytes(k)), np.uint8)
        panels[:, : 32 * k] = np.ascontiguousarray(tiles).reshape(-1, 32 * k).view(np.uint8)
        panels[:, 32 * k :] = scale.reshape(-1, PANEL_COLUMNS).view(np.uint8)
        return panels.reshape(-1)

    def unpack(self, packed: NDArray[np.uint8], n: int, k: int) -> NDArray[np.float32]:
        k_padded = round_up(k, K_MULTIPLE)
        panels = packed.reshape(-1, self._panel_bytes(k))
        tiles = panels[:, : 32 * k_padded].view(np.int8).reshape(-1, k_padded // 64, 2, 16, 16, 4)
        code = tiles.transpose(0, 2, 4, 1, 3, 5).reshape(-1, k_padded)
        scale = np.ascontiguousarray(panels[:, 32 * k_padded :]).view(np.float32).reshape(-1, 1)
        w: NDArray[np.float32] = (code.astype(np.float32) * scale)[:n, :k]
        return w

    def _panel_bytes(self, k: int) -> int:
        return PANEL_COLUMNS * round_up(k, K_MULTIPLE) + 4 * PANEL_COLUMNS


FORMATS.register("int8")(Int8())
