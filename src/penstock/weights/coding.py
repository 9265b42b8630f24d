"""Integer codes and what they stand for: the layout shared by every format of 4 or 8 bits.

    W[n, k] = scale[n, g] * code[n, k] + offset[n, g]        g: the group of K that k is in

Formats hold a Coding; checkpoint readers hand over CodedRows, whose codes and scales are the file's own. A
panel of 32 columns is a stream of superblocks of 128 K (K is padded to 64, so the last may hold 64): codes
as int4.py and int8.py draw them, then the trailer, where every part has 32 columns side by side and begins
at a multiple of 64 bytes:

    trailer   parts, G groups in the superblock                                   scale, offset
    scale     scale fp16 [G][32]                                                  scale, 0
    zero      scale fp16 [G][32], zero s8 [G][32]                                 scale, -scale * zero
    min       scale fp16 [G][32], min fp16 [G][32]                                scale, min
    super     d fp16 [32], dmin fp16 [32], sub_scale u8 [G][32], sub_min u8 [G][32]
                                                                   d * sub_scale, -dmin * sub_min
    sub       d fp16 [32], sub_scale s8 [G][32]                                   d * sub_scale, 0
    exponent  exponent u8 [G][32]                                                 2 ** (exponent - 127), 0
    channel   none; once, at the panel's end: column fp32 [32]                    column, 0

All these products are exact in float32. Four bits are stored as code + bias. With exponents for scales they
are E2M1, floats of four bits (OCP Microscaling Formats v1.0): a code is then what is stored, and E2M1[code]
what multiplies the scale. An exponent of 0 stands for 0, since 2 ** -127 is no normal number.
native/kernels/codes.h reads the same bytes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

SUPERBLOCK_K: Final = 128
PANEL_COLUMNS: Final = 32
K_MULTIPLE: Final = 64
LINE_BYTES: Final = 64

# trailer -> its parts: name, dtype, whether there is one per group (else one per superblock)
PARTS: Final[Mapping[str, tuple[tuple[str, Any, bool], ...]]] = {  # Any: numpy's scalar types
    "scale": (("scale", np.float16, True),),
    "zero": (("scale", np.float16, True), ("zero", np.int8, True)),
    "min": (("scale", np.float16, True), ("min", np.float16, True)),
    "super": (
        ("d", np.float16, False),
        ("dmin", np.float16, False),
        ("sub_scale", np.uint8, True),
        ("sub_min", np.uint8, True),
    ),
    "sub": (("d", np.float16, False), ("sub_scale", np.int8, True)),
    "exponent": (("exponent", np.uint8, True),),
    "channel": (),
}
COLUMN_BYTES: Final = 4 * PANEL_COLUMNS  # at the end of a panel

NAN_EXPONENT: Final = 255
_MAGNITUDES: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1: Final = np.array([*_MAGNITUDES, *(-x for x in _MAGNITUDES)], np.float32)


@dataclass(frozen=True, slots=True)
class Coding:
    bits: int  # 4 or 8
    group: int  # K that share a scale; 0: all, by "channel"
    trailer: str  # a key of PARTS
    bias: int = 0  # what is added to a 4-bit code to store it

    def panel_bytes(self, k: int) -> int:
        blocks = sum(
            count * self._superblock_bytes(length) for _, length, count in self._regions(_round_up(k, 64))
        )
        return blocks + (0 if self.group else COLUMN_BYTES)

    def pack(self, rows: "CodedRows") -> NDArray[np.uint8]:
        """The bytes of `rows`, one dimension. What pads N and K is a code of 0 with a scale of 0."""
        rows = self._padded(rows)
        n, k = rows.codes.shape
        stored = (rows.codes.astype(np.int16) + self.bias).astype(np.uint8)
        panels = np.zeros((n // PANEL_COLUMNS, self.panel_bytes(k)), np.uint8)
        at = 0
        for first, length, count in self._regions(k):
            size = self._superblock_bytes(length)
            blocks = panels[:, at : at + count * size].reshape(-1, count, size)
            codes = stored[:, first : first + count * length]
            self._store_codes(codes, blocks[:, :, : 4 * self.bits * length], length)
            for name, dtype, per_group, begin, end in self._places(length):
                per_block = self._groups(length) if per_group else 1
                block = first // (self.group if per_group else SUPERBLOCK_K)
                part = rows.parts[name][:, block : block + count * per_block]
                by_group = part.reshape(-1, PANEL_COLUMNS, count, per_block).transpose(0, 2, 3, 1)
                flat = np.ascontiguousarray(by_group, dtype).reshape(len(panels), count, -1)
                blocks[:, :, begin:end] = flat.view(np.uint8)
            at += count * size
        if not self.group:
            panels[:, at:] = rows.parts["column"].reshape(-1, PANEL_COLUMNS).view(np.uint8)
        return panels.reshape(-1)

    def unpack(self, packed: NDArray[np.uint8], n: int, k: int) -> "CodedRows":
        """Codes [n, k] and the parts as they were packed."""
        panels = packed.reshape(-1, self.panel_bytes(k))
        columns = len(panels) * PANEL_COLUMNS
        k_padded = _round_up(k, K_MULTIPLE)
        codes = np.empty((columns, k_padded), np.int8)
        parts: dict[str, list[NDArray[Any]]] = {name: [] for name, _, _ in PARTS[self.trailer]}
        at = 0
        for first, length, count in self._regions(k_padded):
            size = self._superblock_bytes(length)
            blocks = panels[:, at : at + count * size].reshape(-1, count, size)
            codes[:, first : first + count * length] = self._read_codes(
                np.ascontiguousarray(blocks[:, :, : 4 * self.bits * length]), length
            )
            for name, dtype, per_group, begin, end in self._places(length):
                per_block = self._groups(length) if per_group else 1
                flat = np.ascontiguousarray(blocks[:, :, begin:end]).view(dtype)
                by_group = flat.reshape(-1, count, per_block, PANEL_COLUMNS).transpose(0, 3, 1, 2)
                parts[name].append(by_group.reshape(columns, -1))
            at += count * size
        joined = {name: np.concatenate(found, axis=1)[:n] for name, found in parts.items()}
        if not self.group:
            joined["column"] = np.ascontiguousarray(panels[:, at:]).view(np.float32).reshape(-1, 1)[:n]
        return CodedRows(self, codes[:n, :k], joined)

    def _store_codes(self, codes: NDArray[np.uint8], out: NDArray[np.uint8], length: int) -> None:
        panels, count = out.shape[:2]
        if self.bits == 8:
            #                    p  c16 t        b     kb         r  i  ->  p  b  kb t  r  c  i
            tiles = codes.reshape(panels, 2, 16, count, length // 64, 16, 4).transpose(0, 3, 4, 1, 5, 2, 6)
            out[:] = tiles.reshape(panels, count, -1)
            return
        #                     p     t  c    b      kb        half r  i ->  half p b kb t r c i
        halves = codes.reshape(panels, 2, 16, count, length // 64, 2, 8, 4).transpose(5, 0, 3, 4, 1, 6, 2, 7)
        out[:] = (halves[0] | halves[1] << 4).reshape(panels, count, -1)

    def _read_codes(self, blocks: NDArray[np.uint8], length: int) -> NDArray[np.int8]:
        panels, count = blocks.shape[:2]
        if self.bits == 8:
            tiles = blocks.view(np.int8).reshape(panels, count, length // 64, 2, 16, 16, 4)
            return tiles.transpose(0, 3, 5, 1, 2, 4, 6).reshape(panels * PANEL_COLUMNS, -1)
        byte = blocks.reshape(panels, count, length // 64, 2, 8, 16, 4)
        halves = np.stack([byte & 15, byte >> 4]).astype(np.int8) - np.int8(self.bias)
        #                     half p b kb t r c i  ->  p t c b kb half r i
        return halves.transpose(1, 4, 6, 2, 3, 0, 5, 7).reshape(panels * PANEL_COLUMNS, -1)

    def _padded(self, rows: "CodedRows") -> "CodedRows":
        n, k = rows.codes.shape
        n_padded, k_padded = _round_up(n, PANEL_COLUMNS), _round_up(k, K_MULTIPLE)
        parts = {}
        for name, dtype, per_group in PARTS[self.trailer]:
            part = rows.parts[name]
            count = -(-k_padded // (self.group if per_group else SUPERBLOCK_K))
            parts[name] = np.pad(part.astype(dtype), ((0, n_padded - n), (0, count - part.shape[1])))
        if not self.group:
            parts["column"] = np.pad(rows.parts["column"].astype(np.float32), ((0, n_padded - n), (0, 0)))
        return CodedRows(self, np.pad(rows.codes, ((0, n_padded - n), (0, k_padded - k))), parts)

    @staticmethod
    def _regions(k_padded: int) -> Iterator[tuple[int, int, int]]:
        """(first k, K of each superblock, how many) of the whole superblocks and of the short one."""
        whole, rest = divmod(k_padded, SUPERBLOCK_K)
        if whole:
            yield 0, SUPERBLOCK_K, whole
        if rest:
            yield whole * SUPERBLOCK_K, rest, 1

    def _groups(self, length: int) -> int:
        return max(1, length // self.group)

    def _places(self, length: int) -> Iterator[tuple[str, Any, bool, int, int]]:
        """(name, dtype, per group, first byte, last byte + 1) of a superblock's trailer parts."""
        at = 4 * self.bits * length
        for name, dtype, per_group in PARTS[self.trailer]:
            size = np.dtype(dtype).itemsize * PANEL_COLUMNS * (self._groups(length) if per_group else 1)
            yield name, dtype, per_group, at, at + size
            at = _round_up(at + size, LINE_BYTES)

    def _superblock_bytes(self, length: int) -> int:
        ends = [4 * self.bits * length, *(end for _, _, _, _, end in self._places(length))]
        return _round_up(ends[-1], LINE_BYTES)


@dataclass(frozen=True, slots=True)
class CodedRows:
    """Rows of a matrix as codes, and the parts of the coding's trailer for each row.

    A part is [n, groups of K] or, one per superblock, [n, K / 128 rounded up]; "column" is [n, 1].
    """

    coding: Coding
    codes: NDArray[np.int8]  # [n, k]: what multiplies the scale, or its place in E2M1
    parts: Mapping[str, NDArray[Any]]  # Any: fp16, fp32, s8 or u8

    def scale(self) -> NDArray[np.float32]:
        """[n, groups]."""
        if "column" in self.parts:
            return self.parts["column"].astype(np.float32)
        if "scale" in self.parts:
            return self.parts["scale"].astype(np.float32)
        if "exponent" in self.parts:
            return (self.parts["exponent"].astype(np.uint32) << 23).view(np.float32)
        return self._spread("d") * self.parts["sub_scale"].astype(np.float32)

    def offset(self) -> NDArray[np.float32] | None:
        """[n, groups], or None where all are 0."""
        if "zero" in self.parts:
            return -(self.scale() * self.parts["zero"].astype(np.float32))
        if "min" in self.parts:
            return self.parts["min"].astype(np.float32)
        if "dmin" in self.parts:
            return -(self._spread("dmin") * self.parts["sub_min"].astype(np.float32))
        return None

    def values(self) -> NDArray[np.float32]:
        """The [n, k] weights, each rounded once."""
        k = self.codes.shape[1]
        out = E2M1[self.codes] if "exponent" in self.parts else self.codes.astype(np.float32)
        out *= np.repeat(self.scale(), self.coding.group or k, axis=1)[:, :k]
        offset = self.offset()
        if offset is not None:
            out += np.repeat(offset, self.coding.group, axis=1)[:, :k]
        return out

    def take(self, rows: NDArray[np.intp] | slice) -> "CodedRows":
        """Some of the rows, in another order."""
        parts = {name: part[rows] for name, part in self.parts.items()}
        return replace(self, codes=self.codes[rows], parts=parts)

    def stored_parts(self) -> list[NDArray[Any]]:
        """The parts as a trailer stores them, in its order, one value per row and group."""
        k = self.codes.shape[1]
        found = []
        for name, dtype, per_group in PARTS[self.coding.trailer]:
            count = -(-k // (self.coding.group if per_group else SUPERBLOCK_K))
            found.append(np.ascontiguousarray(self.parts[name][:, :count], dtype))
        if "column" in self.parts:
            found.append(np.ascontiguousarray(self.parts["column"], np.float32))
        return found

    def is_finite(self) -> bool:
        if "exponent" in self.parts:
            return bool((self.parts["exponent"] != NAN_EXPONENT).all())
        return all(np.isfinite(part).all() for part in self.parts.values() if part.dtype.kind == "f")

    def _spread(self, name: str) -> NDArray[np.float32]:
        """A part of superblocks, once per group."""
        groups = self.parts["sub_scale"].shape[1]
        per_block = SUPERBLOCK_K // self.coding.group
        return np.repeat(self.parts[name].astype(np.float32), per_block, axis=1)[:, :groups]


@dataclass(frozen=True, slots=True)
class CodedBlocks:
    """Rows as a file has them, for packers that read its blocks: weights/gguf_blocks.py names the kinds."""

    kind: str
    rows: NDArray[np.uint8]  # [n, bytes of a row]
    k: int


def join_rows(pieces: list[CodedRows]) -> CodedRows:
    """Rows under each other; all of one coding."""
    first = pieces[0]
    if len(pieces) == 1:
        return first
    parts = {name: np.concatenate([piece.parts[name] for piece in pieces]) for name in first.parts}
    return CodedRows(first.coding, np.concatenate([piece.codes for piece in pieces]), parts)


def _round_up(x: int, to: int) -> int:
    return -(-x // to) * to
