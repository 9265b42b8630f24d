"""int4_g32, int4_g64, int4_g128: four bits per weight, an fp16 scale per column and group of K. Lossy; INT.

    d = fp16(m / -8)        m: the group's weight of largest magnitude, with its sign; the first of equals
    code = clamp(floor(w / d + 8.5), 0, 15)        8 where d is 0
    w ~ (code - 8) * d      |error| <= |d| / 2, or |d| at the far end of the range (codes are -8 .. 7)

4.5, 4.25 and 4.125 bits per weight. With g32 this is GGUF's Q4_0, code for code. A panel of 32 columns is a
stream of superblocks of 128 K; K is padded to 64, so the last may hold 64:

    offset in the superblock                      holds
    kb*1024 + t*512 + r*64 + c*4 + i              low nibble: code of W[32p + 16t + c][64kb + 4r + i]
                                                  high nibble: code of W[32p + 16t + c][64kb + 32 + 4r + i]
        kb = 0, 1 (within the superblock)   t = 0, 1   r = 0 .. 7   c = 0 .. 15   i = 0 .. 3
    2048 + 64*g + 2*j                             d of column 32p + j in group g, fp16, j = 0 .. 31
    (1024 + ... where the superblock holds 64)        one group at least, also where it is shorter than G

So a mask alone gives 32 successive K of a column's four, and no group of 32 straddles a register.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from penstock.weights.format import FORMATS, K_MULTIPLE, PANEL_COLUMNS, padded, round_up

SUPERBLOCK_K = 128
LARGEST_HALF = np.float32(65504)


@dataclass(frozen=True, slots=True)
class Int4:
    group: int
    exact: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return f"int4_g{self.group}"

    def bytes_per_weight(self, k: int) -> float:
        return self._panel_bytes(k) / (PANEL_COLUMNS * k)

    def pack(self, w: NDArray[np.float32]) -> NDArray[np.uint8]:
        w = padded(w)
        n, k = w.shape
        parts = []
        for begin in range(0, k, SUPERBLOCK_K):
            length = min(SUPERBLOCK_K, k - begin)
            codes, scales = self._quantize(w[:, begin : begin + length])
            #                    p  t   c   kb            half r  i  ->  half p  kb t  r  c  i
            halves = codes.reshape(-1, 2, 16, length // 64, 2, 8, 4).transpose(4, 0, 3, 1, 5, 2, 6)
            parts.append((halves[0] | halves[1] << 4).reshape(n // PANEL_COLUMNS, -1))
            by_group = scales.reshape(n // PANEL_COLUMNS, PANEL_COLUMNS, -1).transpose(0, 2, 1)
            parts.append(np.ascontiguousarray(by_group).reshape(n // PANEL_COLUMNS, -1).view(np.uint8))
        return np.concatenate(parts, axis=1).reshape(-1)

    def unpack(self, packed: NDArray[np.uint8], n: int, k: int) -> NDArray[np.float32]:
        k_padded = round_up(k, K_MULTIPLE)
        panels = packed.reshape(-1, self._panel_bytes(k))
        columns = len(panels) * PANEL_COLUMNS
        w = np.empty((columns, k_padded), np.float32)
        offset = 0
        for begin in range(0, k_padded, SUPERBLOCK_K):
            length = min(SUPERBLOCK_K, k_padded - begin)
            group = min(self.group, length)
            codes_end = offset + 16 * length
            scales_end = codes_end + 64 * (length // group)
            byte = panels[:, offset:codes_end].reshape(-1, length // 64, 2, 8, 16, 4)
            halves = np.stack([byte & 15, byte >> 4])
            codes = halves.transpose(1, 3, 5, 2, 0, 4, 6).reshape(columns, -1, group)
            half_scales = np.ascontiguousarray(panels[:, codes_end:scales_end]).view(np.float16)
            scales = half_scales.reshape(-1, length // group, PANEL_COLUMNS).transpose(0, 2, 1)
            values = (codes.astype(np.float32) - 8) * scales.astype(np.float32).reshape(columns, -1, 1)
            w[:, begin : begin + length] = values.reshape(columns, length)
            offset = scales_end
        return w[:n, :k]

    def _quantize(self, w: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
        """Codes [N, length] and scales [N, groups] of one superblock."""
        n, length = w.shape
        groups = w.reshape(n, -1, min(self.group, length))
        largest = np.take_along_axis(groups, np.abs(groups).argmax(axis=2)[:, :, None], axis=2)
        d = np.clip(largest / np.float32(-8), -LARGEST_HALF, LARGEST_HALF).astype(np.float16)
        scale = d.astype(np.float32)
        ratio = np.divide(groups, scale, out=np.zeros_like(groups), where=scale != 0)
        codes = np.clip(np.floor(ratio + np.float32(8.5)), 0, 15).astype(np.uint8)
        return codes.reshape(n, length), d[:, :, 0]

    def _panel_bytes(self, k: int) -> int:
        whole, rest = divmod(round_up(k, K_MULTIPLE), SUPERBLOCK_K)
        trailer = 64 * SUPERBLOCK_K // self.group
        short_trailer = 64 * max(1, rest // self.group)
        return whole * (16 * SUPERBLOCK_K + trailer) + (16 * rest + short_trailer if rest else 0)


for size in (32, 64, 128):
    FORMATS.register(f"int4_g{size}")(Int4(size))
