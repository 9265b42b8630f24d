"""One GGUF file, mapped read-only: magic, counts, metadata, tensor entries, aligned data.

Called by the gguf reader. Nothing is allocated from a declared count before it is compared with the bytes
that are left; every span lies in the file, aligned, and overlaps no other. Versions 2 and 3, little-endian.
"""

import hashlib
import math
import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from penstock.errors import ModelLoadError
from penstock.weights.safetensors_file import map_file, shown

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
DEFAULT_ALIGNMENT: Final = 32
MAX_ALIGNMENT: Final = 1 << 20
MAX_KEY_BYTES: Final = 65535
MAX_NAME_BYTES: Final = 255
MAX_DIMS: Final = 4
SAMPLE_BYTES: Final = 4096

STRING, ARRAY, BOOL = 8, 9, 7
SCALARS: Final[Mapping[int, str]] = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "<u1", 10: "<u8", 11: "<i8",
    12: "<f8",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class BlockType:
    """How ggml stores a tensor: blocks of `elements` values in `num_bytes` bytes."""

    name: str
    elements: int
    num_bytes: int


TYPES: Final[Mapping[int, BlockType]] = {
    0: BlockType("F32", 1, 4),
    1: BlockType("F16", 1, 2),
    2: BlockType("Q4_0", 32, 18),
    3: BlockType("Q4_1", 32, 20),
    6: BlockType("Q5_0", 32, 22),
    7: BlockType("Q5_1", 32, 24),
    8: BlockType("Q8_0", 32, 34),
    12: BlockType("Q4_K", 256, 144),
    13: BlockType("Q5_K", 256, 176),
    14: BlockType("Q6_K", 256, 210),
    30: BlockType("BF16", 1, 2),
}
UNREAD_TYPES: Final[Mapping[int, str]] = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64",
    28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """`blocks`: the tensor's bytes, [rows, bytes of a row]; `shape` in numpy's order, K last."""

    type: BlockType
    shape: tuple[int, ...]
    blocks: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """Metadata as Python values (arrays of numbers as numpy arrays), tensors, and fingerprints."""

    metadata: Mapping[str, Any]  # Any: what the file says, checked by who reads it
    tensors: Mapping[str, GGUFTensor]
    content_hash: str
    source_hash: str
    stamp: tuple[int, int]


def read_gguf(path: Path) -> GGUFFile:
    """Map and check `path`. ModelLoadError with a code for whatever is wrong with it."""
    data, stamp = map_file(path)
    cursor = _Cursor(path, data)
    if data[:4] != MAGIC:
        cursor.refuse("bad_header", "does not begin with GGUF; download it again")
    cursor.at = 4
    version = cursor.number("<u4")
    if version not in VERSIONS:
        swapped = struct.unpack(">I", struct.pack("<I", version))[0]
        why = "is big-endian" if swapped in VERSIONS else f"is of version {version}"
        cursor.refuse("bad_header", f"{why}; versions 2 and 3, little-endian, are read; convert it again")
    num_tensors, num_keys = cursor.number("<u8"), cursor.number("<u8")
    if num_keys > cursor.left // 13 or num_tensors > cursor.left // 25:
        cursor.refuse("bad_header", f"claims {num_tensors:,} tensors and {num_keys:,} keys: more than fit")
    metadata = _metadata(cursor, num_keys)
    alignment = _alignment(cursor, metadata)
    entries = _entries(cursor, num_tensors)
    header_end = cursor.at
    start = -(-header_end // alignment) * alignment
    tensors = _tensors(cursor, data, start, alignment, entries)
    digest = hashlib.blake2b(data[:header_end], digest_size=16)
    for tensor in tensors.values():
        flat = tensor.blocks.reshape(-1)
        middle = len(flat) // 2
        digest.update(flat[:SAMPLE_BYTES].tobytes() + flat[middle : middle + SAMPLE_BYTES].tobytes())
    content_hash = digest.hexdigest()
    source_hash = hashlib.blake2b(f"{content_hash} {stamp}".encode(), digest_size=16).hexdigest()
    return GGUFFile(metadata, tensors, content_hash, source_hash, stamp)


class _Cursor:
    """A place in the header; every read is checked against the bytes that are left."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path = path
        self._data = data
        self.at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self.at

    def refuse(self, code: str, why: str) -> NoReturn:
        raise ModelLoadError(code, f"{self._path.name}: {why}.")

    def take(self, count: int, what: str) -> bytes:
        if count > self.left:
            self.refuse("truncated", f"{what} of {count:,} bytes at byte {self.at:,} goes past the end")
        self.at += count
        return self._data[self.at - count : self.at]

    def number(self, dtype: str) -> int:
        kind = np.dtype(dtype)
        return int(np.frombuffer(self.take(kind.itemsize, "a number"), kind)[0])

    def text(self, what: str, most: int) -> str:
        length = self.number("<u8")
        if length > most:
            self.refuse("bad_header", f"{what} of {length:,} bytes is too long")
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError:
            self.refuse("bad_header", f"{what} at byte {self.at:,} is not UTF-8")

    def lenient_text(self) -> str:
        """Tokens may hold half a character; such bytes become surrogates, which no text has."""
        return self.take(self.number("<u8"), "a text").decode("utf-8", "surrogateescape")

    def value(self, kind: int) -> Any:  # Any: one of the file's types
        if kind == STRING:
            return self.lenient_text()
        if kind == ARRAY:
            return self._array()
        if kind not in SCALARS:
            self.refuse("bad_header", f"a metadata value has the unknown type {kind}")
        found = np.frombuffer(self.take(np.dtype(SCALARS[kind]).itemsize, "a value"), SCALARS[kind])[0]
        if kind == BOOL:
            if found > 1:
                self.refuse("bad_header", f"a metadata value is {found}, neither true nor false")
            return bool(found)
        return found.item()

    def _array(self) -> Any:
        kind, count = self.number("<u4"), self.number("<u8")
        if kind == ARRAY:
            self.refuse("bad_header", "an array of arrays, which no model needs")
        if kind != STRING and kind not in SCALARS:
            self.refuse("bad_header", f"an array of the unknown type {kind}")
        least = 8 if kind == STRING else np.dtype(SCALARS[kind]).itemsize
        if count > self.left // least:
            self.refuse("truncated", f"an array of {count:,} values goes past the end")
        if kind == STRING:
            return [self.lenient_text() for _ in range(count)]
        return np.frombuffer(self.take(count * least, "an array"), SCALARS[kind])


def _metadata(cursor: _Cursor, count: int) -> dict[str, Any]:  # Any: see GGUFFile
    found: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.text("a key", MAX_KEY_BYTES)
        if not key or not key.isprintable():
            cursor.refuse("bad_header", f"{shown(key)} is no key")
        if key in found:
            cursor.refuse("bad_header", f"key {shown(key)} appears twice")
        kind = cursor.number("<u4")
        found[key] = cursor.value(kind)
        if key == "general.alignment" and kind != 4:
            cursor.refuse("bad_header", "general.alignment is not an unsigned 32-bit number")
    return found


def _alignment(cursor: _Cursor, metadata: Mapping[str, Any]) -> int:
    alignment: int = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        cursor.refuse(
            "bad_header", f"general.alignment is {alignment}, no power of two up to {MAX_ALIGNMENT}"
        )
    return alignment


_Entry = tuple[BlockType, tuple[int, ...], int]  # type, shape, offset


def _entries(cursor: _Cursor, count: int) -> dict[str, _Entry]:
    found: dict[str, _Entry] = {}
    for _ in range(count):
        name = cursor.text("a tensor's name", MAX_NAME_BYTES)
        refuse = _refusal_of(cursor, name)
        if not name or not name.isprintable():
            refuse("bad_tensor_info", "that is no name")
        if name in found:
            refuse("bad_tensor_info", "appears twice")
        num_dims = cursor.number("<u4")
        if not 1 <= num_dims <= MAX_DIMS:
            refuse("bad_tensor_info", f"has {num_dims:,} dimensions")
        dims = [cursor.number("<u8") for _ in range(num_dims)]
        kind, offset = cursor.number("<u4"), cursor.number("<u8")
        if kind in UNREAD_TYPES:
            refuse("dtype_unsupported", f"is {UNREAD_TYPES[kind]}; quantize the model to Q4_0, Q4_K or Q8_0")
        if kind not in TYPES:
            refuse("bad_tensor_info", f"has the unknown type {kind}")
        if min(dims) == 0 or math.prod(dims) >= 2**63:
            refuse("bad_tensor_info", f"{dims} is no shape")
        if dims[0] % TYPES[kind].elements:
            refuse("bad_tensor_info", f"rows of {dims[0]} are not whole blocks of {TYPES[kind].name}")
        found[name] = TYPES[kind], tuple(reversed(dims)), offset
    return found


def _refusal_of(cursor: _Cursor, name: str) -> Callable[[str, str], NoReturn]:
    def refuse(code: str, why: str) -> NoReturn:
        cursor.refuse(code, f"tensor {shown(name)} {why}")

    return refuse


def _tensors(
    cursor: _Cursor, data: mmap.mmap, start: int, alignment: int, entries: Mapping[str, _Entry]
) -> dict[str, GGUFTensor]:
    found: dict[str, GGUFTensor] = {}
    whole = np.frombuffer(data, np.uint8)
    at = 0
    for name, (kind, shape, offset) in sorted(entries.items(), key=lambda item: item[1][2]):
        refuse = _refusal_of(cursor, name)
        size = math.prod(shape) // kind.elements * kind.num_bytes
        if offset % alignment:
            refuse("bad_tensor_info", f"begins at {offset:,}, which is no multiple of {alignment}")
        if offset < at:
            refuse("bad_tensor_info", "overlaps another")
        if offset - at >= alignment:
            refuse("bad_tensor_info", f"leaves a hole of {offset - at:,} bytes before it")
        at = offset + size
        if start + at > len(data):
            refuse("truncated", f"ends at byte {start + at:,} of a file of {len(data):,}; download it again")
        row_bytes = shape[-1] // kind.elements * kind.num_bytes
        found[name] = GGUFTensor(kind, shape, whole[start + offset : start + at].reshape(-1, row_bytes))
    if entries and len(data) - start - at >= alignment:
        cursor.refuse("bad_tensor_info", f"{len(data) - start - at:,} bytes follow the last tensor")
    return {name: found[name] for name in entries}
