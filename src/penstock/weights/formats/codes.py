"""int4_* and int8_* of imported checkpoints: their own codes and scales, packed without loss.

    format                       bits per weight (K a multiple of 128)        made of
    int4_g32_zero g64 g128       4.75   4.5   4.25                            GPTQ and AWQ with zero points
    int4_g32_min                 5                                            GGUF Q4_1
    int4_super                   4.75                                         GGUF Q4_K
    int8_g32 g64 g128            8.5    8.25  8.125                           GGUF Q8_0, Q5_0; GPTQ, 8 bits
    int8_g32_zero g64 g128       8.75   8.5   8.25                            GPTQ, 8 bits, zero points
    int8_g32_min                 9                                            GGUF Q5_1
    int8_super                   8.75                                         GGUF Q5_K
    int8_super16                 8.625                                        GGUF Q6_K
    mxfp4                        4.25                                         MXFP4 (gpt-oss)

Bytes: weights/coding.py. They are computed with under the BF16 contract: bf16 activations times the code, the
scale applied to the group's sum; where asked for under the INT contract, with activations of 8 bits (lossy;
mxfp4, whose codes are no integers, is not). `pack` rounds ordinary weights to the nearest code, for tests: an
importer hands codes to the coding itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from penstock.weights.coding import E2M1, SUPERBLOCK_K, CodedRows, Coding
from penstock.weights.format import CODE_OPERANDS, FORMATS, PANEL_COLUMNS, padded

F32 = NDArray[np.float32]
Parts = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Codes:
    name: str
    coding: Coding
    exact: ClassVar[bool] = False

    @property
    def operands(self) -> tuple[str, ...]:
        return CODE_OPERANDS if self.coding.trailer != "exponent" else CODE_OPERANDS[:1]

    def bytes_per_weight(self, k: int) -> float:
        return self.coding.panel_bytes(k) / (PANEL_COLUMNS * k)

    def pack(self, w: F32) -> NDArray[np.uint8]:
        """Rounded to nearest, with scales from the extremes of each group; |error| <= 0.6 of a step.

        E2M1: the greatest of a group lies within 3 .. 6 of its scale, so |error| <= 1 / 5 of the greatest.
        """
        wide = padded(w)
        n, k = wide.shape
        group = self.coding.group
        groups = np.pad(wide, ((0, 0), (0, -k % group))).reshape(n, -1, group)
        if self.coding.trailer == "exponent":
            return self.coding.pack(_nearest_e2m1(groups, self.coding, k))
        parts, step, offset = _SCALES[self.coding.trailer](groups, self.coding)
        ratio = np.divide(
            groups - offset[:, :, None],
            step[:, :, None],
            out=np.zeros_like(groups),
            where=step[:, :, None] != 0,
        )
        low, high = _range(self.coding)
        codes = np.clip(np.rint(ratio), low, high).astype(np.int8).reshape(n, -1)[:, :k]
        return self.coding.pack(CodedRows(self.coding, codes, parts))

    def unpack(self, packed: NDArray[np.uint8], n: int, k: int) -> F32:
        return self.coding.unpack(packed, n, k).values()


def _nearest_e2m1(groups: F32, coding: Coding, k: int) -> CodedRows:
    """The least power of two that keeps a group within 6 of it, then the nearest code, of two the first."""
    greatest = np.abs(groups).max(axis=2)
    _, exponent = np.frexp(greatest / np.float32(6))
    is_power = np.ldexp(np.float32(0.5), exponent) * 6 == greatest
    exponent = np.where(greatest > 0, np.clip(exponent - is_power + 127, 1, 254), 0).astype(np.uint8)
    scale = (exponent.astype(np.uint32) << 23).view(np.float32)[:, :, None]
    ratio = np.divide(groups, scale, out=np.zeros_like(groups), where=scale != 0)
    between = (E2M1[1:8] + E2M1[:7]) / 2
    codes = np.searchsorted(between, np.abs(ratio)).astype(np.int8) + np.int8(8) * np.signbit(ratio)
    return CodedRows(coding, codes.astype(np.int8).reshape(len(groups), -1)[:, :k], {"exponent": exponent})


def _range(coding: Coding) -> tuple[int, int]:
    if coding.bits == 8:
        return -128, 127
    return -coding.bias, 15 - coding.bias


def _half(x: F32) -> F32:
    return np.clip(x, -65504, 65504).astype(np.float16).astype(np.float32)


def _spread(groups: F32, coding: Coding) -> tuple[F32, F32, F32]:
    """(least, greatest, step between codes) of each group, 0 among them."""
    low, high = _range(coding)
    least, greatest = np.minimum(groups.min(axis=2), 0), np.maximum(groups.max(axis=2), 0)
    return least, greatest, (greatest - least) / np.float32(high - low)


def _scale(groups: F32, coding: Coding) -> tuple[Parts, F32, F32]:
    low, high = _range(coding)
    step = _half(np.abs(groups).max(axis=2) / np.float32(min(-low, high)))
    return {"scale": step.astype(np.float16)}, step, np.zeros_like(step)


def _zero(groups: F32, coding: Coding) -> tuple[Parts, F32, F32]:
    least, _, step = _spread(groups, coding)
    step = _half(step)
    low, high = _range(coding)
    zero = np.divide(-least, step, out=np.zeros_like(step), where=step != 0) + np.float32(low)
    zero = np.clip(np.rint(zero), low, high).astype(np.float32)
    return {"scale": step.astype(np.float16), "zero": zero.astype(np.int8)}, step, -step * zero


def _min(groups: F32, coding: Coding) -> tuple[Parts, F32, F32]:
    least, _, step = _spread(groups, coding)
    low, _ = _range(coding)
    step = _half(step)
    offset = _half(least - step * np.float32(low))
    return {"scale": step.astype(np.float16), "min": offset.astype(np.float16)}, step, offset


def _super(groups: F32, coding: Coding) -> tuple[Parts, F32, F32]:
    """Codes from 0 on, as the files that have this trailer."""
    least = np.minimum(groups.min(axis=2), 0)
    step = (np.maximum(groups.max(axis=2), 0) - least) / np.float32(15 if coding.bits == 4 else 31)
    d, sub_scale, step = _two_levels(step, coding, 63)
    dmin, sub_min, lift = _two_levels(-least, coding, 63)
    return {"d": d, "dmin": dmin, "sub_scale": sub_scale, "sub_min": sub_min}, step, -lift


def _sub(groups: F32, coding: Coding) -> tuple[Parts, F32, F32]:
    d, sub_scale, step = _two_levels(np.abs(groups).max(axis=2) / np.float32(31), coding, 127)
    return {"d": d, "sub_scale": sub_scale.astype(np.int8)}, step, np.zeros_like(step)


def _two_levels(x: F32, coding: Coding, most: int) -> tuple[NDArray[Any], NDArray[Any], F32]:
    """x[n, groups] ~ d[n, superblocks] * whole numbers up to `most`, which are no smaller than x asks."""
    n, count = x.shape
    per_block = SUPERBLOCK_K // coding.group
    blocks = np.pad(x, ((0, 0), (0, -count % per_block))).reshape(n, -1, per_block)
    d = _half(blocks.max(axis=2) / np.float32(most))
    wide = np.repeat(d, per_block, axis=1)[:, :count]
    whole = np.divide(x, wide, out=np.zeros_like(x), where=wide != 0)
    whole = np.clip(np.ceil(whole), 0, most).astype(np.float32)
    return d.astype(np.float16), whole.astype(np.uint8), wide * whole


_SCALES: Mapping[str, Callable[[F32, Coding], tuple[Parts, F32, F32]]] = {
    "scale": _scale,
    "zero": _zero,
    "min": _min,
    "super": _super,
    "sub": _sub,
}

for made in (
    *(Codes(f"int4_g{g}_zero", Coding(4, g, "zero", bias=8)) for g in (32, 64, 128)),
    Codes("int4_g32_min", Coding(4, 32, "min")),
    Codes("int4_super", Coding(4, 32, "super")),
    *(Codes(f"int8_g{g}", Coding(8, g, "scale")) for g in (32, 64, 128)),
    *(Codes(f"int8_g{g}_zero", Coding(8, g, "zero")) for g in (32, 64, 128)),
    Codes("int8_g32_min", Coding(8, 32, "min")),
    Codes("int8_super", Coding(8, 32, "super")),
    Codes("int8_super16", Coding(8, 16, "sub")),
    Codes("mxfp4", Coding(4, 32, "exponent")),
):
    FORMATS.register(made.name)(made)
