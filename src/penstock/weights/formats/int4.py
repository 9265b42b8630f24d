"""int4_g32, int4_g64, int4_g128: four bits per weight, an fp16 scale per column and group of K. Lossy; INT.

    d = fp16(m / -8)        m: the group's weight of largest magnitude, with its sign; the first of equals
    code = clamp(floor(w / d + 8.5), 0, 15)        8 where d is 0
    w ~ (code - 8) * d      |error| <= |d| / 2, or |d| at the far end of the range (codes are -8 .. 7)

This is Q4_0's rule for d ("q4_0"), and with g32 GGUF's Q4_0, code for code. Int4.rule names another one, of
the same bytes: "rtn" takes d = amax / 7, so that no code is worth more than another; "mse" tries fractions of
both and takes the d of least squared error. The native packer knows the first alone.

4.5, 4.25 and 4.125 bits per weight. A panel of 32 columns is a
stream of superblocks of 128 K; K is padded to 64, so the last may hold 64:

    offset in the superblock                      holds
    kb*1024 + t*512 + r*64 + c*4 + i              low nibble: code of W[32p + 16t + c][64kb + 4r + i]
                                                  high nibble: code of W[32p + 16t + c][64kb + 32 + 4r + i]
        kb = 0, 1 (within the superblock)   t = 0, 1   r = 0 .. 7   c = 0 .. 15   i = 0 .. 3
    2048 + 64*g + 2*j                             d of column 32p + j in group g, fp16, j = 0 .. 31
    (1024 + ... where the superblock holds 64)        one group at least, also where it is shorter than G

So a mask alone gives 32 successive K of a column's four, and no group of 32 straddles a register.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from penstock.weights.coding import SUPERBLOCK_K, CodedRows, Coding
from penstock.weights.format import CODE_OPERANDS, FORMATS, PANEL_COLUMNS, padded

F32 = NDArray[np.float32]

LARGEST_HALF = np.float32(65504)
SEARCHED = tuple(float(f) for f in np.arange(0.70, 1.16, 0.025))  # of q4_0's d, by the "mse" rule


@dataclass(frozen=True, slots=True)
class Int4:
    group: int
    rule: str = "q4_0"  # a key of RULES
    exact: ClassVar[bool] = False
    operands: ClassVar[tuple[str, ...]] = CODE_OPERANDS

    @property
    def name(self) -> str:
        return f"int4_g{self.group}"

    @property
    def coding(self) -> Coding:
        return Coding(4, self.group, "scale", bias=8)

    def bytes_per_weight(self, k: int) -> float:
        return self.coding.panel_bytes(k) / (PANEL_COLUMNS * k)

    def pack(self, w: NDArray[np.float32]) -> NDArray[np.uint8]:
        w = padded(w)
        found = [
            self._quantize(w[:, begin : begin + SUPERBLOCK_K]) for begin in range(0, w.shape[1], SUPERBLOCK_K)
        ]
        codes = np.concatenate([codes for codes, _ in found], axis=1).astype(np.int8) - np.int8(8)
        scales = np.concatenate([scales for _, scales in found], axis=1)
        return self.coding.pack(CodedRows(self.coding, codes, {"scale": scales}))

    def unpack(self, packed: NDArray[np.uint8], n: int, k: int) -> NDArray[np.float32]:
        return self.coding.unpack(packed, n, k).values()

    def _quantize(self, w: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
        """Codes [N, length] and scales [N, groups] of one superblock."""
        n, length = w.shape
        groups = w.reshape(n, -1, min(self.group, length))
        d = RULES[self.rule](groups)
        return _codes(groups, d).reshape(n, length), d[:, :, 0]


def _signed_max(groups: F32) -> F32:
    """The weight of largest magnitude of each group, with its sign: [N, groups, 1]."""
    largest: F32 = np.take_along_axis(groups, np.abs(groups).argmax(axis=2)[:, :, None], axis=2)
    return largest


def _half(d: F32) -> NDArray[np.float16]:
    return np.clip(d, -LARGEST_HALF, LARGEST_HALF).astype(np.float16)


def _codes(groups: F32, d: NDArray[np.float16]) -> NDArray[np.uint8]:
    scale = d.astype(np.float32)
    ratio = np.divide(groups, scale, out=np.zeros_like(groups), where=scale != 0)
    return np.clip(np.floor(ratio + np.float32(8.5)), 0, 15).astype(np.uint8)


def _q4_0(groups: F32) -> NDArray[np.float16]:
    return _half(_signed_max(groups) / np.float32(-8))


def _rtn(groups: F32) -> NDArray[np.float16]:
    amax: F32 = np.abs(_signed_max(groups))
    return _half(amax / np.float32(7))


def _mse(groups: F32) -> NDArray[np.float16]:
    """The first of the best candidates: q4_0's d, then fractions of it and of its opposite."""
    base = _signed_max(groups) / np.float32(-8)
    best, least = _half(base), np.full(base.shape, np.inf, np.float32)
    for fraction in (1.0, *SEARCHED, *(-f for f in SEARCHED)):
        d = _half(base * np.float32(fraction))
        error = (_codes(groups, d).astype(np.float32) - 8) * d.astype(np.float32) - groups
        loss = np.square(error).sum(axis=2, keepdims=True)
        better = loss < least
        best, least = np.where(better, d, best), np.where(better, loss, least)
    return best


RULES: Mapping[str, Callable[[F32], NDArray[np.float16]]] = {"q4_0": _q4_0, "rtn": _rtn, "mse": _mse}


for size in (32, 64, 128):
    FORMATS.register(f"int4_g{size}")(Int4(size))
