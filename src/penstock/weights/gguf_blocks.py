"""ggml's block types -> integer codes with their own scales, without loss.

    type   elements of a block  bytes, in order                                      format here
    Q4_0   32    d fp16, 16 pairs of nibbles (k, k + 16), code - 8                   int4_g32
    Q4_1   32    d, m fp16, nibbles as Q4_0, code                                    int4_g32_min
    Q5_0   32    d fp16, 32 fifth bits, nibbles as Q4_0, code - 16                   int8_g32
    Q5_1   32    d, m fp16, 32 fifth bits, nibbles as Q4_0, code                     int8_g32_min
    Q8_0   32    d fp16, 32 s8                                                       int8_g32
    Q4_K   256   d, dmin fp16, 12 of six-bit scales and mins, nibbles (k, k + 32)    int4_super
    Q5_K   256   d, dmin fp16, 12 likewise, 32 of fifth bits, nibbles as Q4_K        int8_super
    Q6_K   256   128 of nibbles, 64 of two high bits, 16 s8 scales, d fp16, code - 32   int8_super16

tests/unit/weights/test_gguf_blocks.py compares every value with the `gguf` package's, bit for bit.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from penstock.weights.coding import CodedRows
from penstock.weights.format import FORMATS
from penstock.weights.gguf_file import BlockType

Bytes = NDArray[np.uint8]
Parts = dict[str, NDArray[Any]]

FORMAT_OF: Final[Mapping[str, str]] = {
    "Q4_0": "int4_g32",
    "Q4_1": "int4_g32_min",
    "Q5_0": "int8_g32",
    "Q5_1": "int8_g32_min",
    "Q8_0": "int8_g32",
    "Q4_K": "int4_super",
    "Q5_K": "int8_super",
    "Q6_K": "int8_super16",
}


def decode(kind: BlockType, rows: Bytes) -> CodedRows:
    """Rows of blocks, [n, bytes of a row], as codes and scales."""
    blocks = np.ascontiguousarray(rows).reshape(len(rows), -1, kind.num_bytes)
    codes, parts = _DECODERS[kind.name](blocks)
    coding = FORMATS[FORMAT_OF[kind.name]].coding  # type: ignore[attr-defined]  # those named above have one
    return CodedRows(coding, codes.reshape(len(rows), -1), parts)


def _half(blocks: Bytes, at: int) -> NDArray[np.float16]:
    return np.ascontiguousarray(blocks[:, :, at : at + 2]).view(np.float16)[:, :, 0]


def _nibbles(packed: Bytes) -> NDArray[np.int8]:
    """Low nibbles, then high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=2).astype(np.int8)


def _fifth(blocks: Bytes, at: int) -> NDArray[np.int8]:
    """16 where the bit of an element is set."""
    bits = np.unpackbits(blocks[:, :, at : at + 4], axis=2, bitorder="little")
    return (bits << 4).astype(np.int8)


def _q4_0(b: Bytes) -> tuple[NDArray[np.int8], Parts]:
    return _nibbles(b[:, :, 2:]) - np.int8(8), {"scale": _half(b, 0)}


def _q4_1(b: Bytes) -> tuple[NDArray[np.int8], Parts]:
    return _nibbles(b[:, :, 4:]), {"scale": _half(b, 0), "min": _half(b, 2)}


def _q5_0(b: Bytes) -> tuple[NDArray[np.int8], Parts]:
    return (_nibbles(b[:, :, 6:]) | _fifth(b, 2)) - np.int8(16), {"scale": _half(b, 0)}


def _q5_1(b: Bytes) -> tuple[NDArray[np.int8], Parts]:
    return _nibbles(b[:, :, 8:]) | _fifth(b, 4), {"scale": _half(b, 0), "min": _half(b, 2)}


def _q8_0(b: Bytes) -> tuple[NDArray[np.int8], Parts]:
    return b[:, :, 2:].view(np.int8), {"scale": _half(b, 0)}


def _supers(b: Bytes) -> Parts:
    """d and dmin of the 256 K, for both of its superblocks of 128; eight six-bit scales and mins."""
    low, high, last = b[:, :, 4:8], b[:, :, 8:12], b[:, :, 12:16]
    scale = np.concatenate([low & 63, (last & 15) | (low >> 6) << 4], axis=2)
    minimum = np.concatenate([high & 63, (last >> 4) | (high >> 6) << 4], axis=2)
    n = len(b)
    return {
        "d": np.repeat(_half(b, 0), 2, axis=1),
        "dmin": np.repeat(_half(b, 2), 2, axis=1),
        "sub_scale": scale.reshape(n, -1),
        "sub_min": minimum.reshape(n, -1),
    }


def _q4_k(b: Bytes) -> tuple[NDArray[np.int8], Parts]:
    return _pairs_of_32(b[:, :, 16:]), _supers(b)


def _q5_k(b: Bytes) -> tuple[NDArray[np.int8], Parts]:
    bits = np.unpackbits(b[:, :, 16:48], axis=2, bitorder="little").reshape(*b.shape[:2], 32, 8)
    fifth = (bits << 4).astype(np.int8).transpose(0, 1, 3, 2).reshape(*b.shape[:2], 256)
    return _pairs_of_32(b[:, :, 48:]) | fifth, _supers(b)


def _pairs_of_32(packed: Bytes) -> NDArray[np.int8]:
    """Each 32 bytes hold 64 elements: low nibbles, then high ones."""
    groups = packed.reshape(*packed.shape[:2], 4, 32)
    return np.stack([groups & 15, groups >> 4], axis=3).astype(np.int8).reshape(*packed.shape[:2], 256)


def _q6_k(b: Bytes) -> tuple[NDArray[np.int8], Parts]:
    low = b[:, :, :128].reshape(*b.shape[:2], 2, 2, 32)  # half of the block, first or second 32
    high = b[:, :, 128:192].reshape(*b.shape[:2], 2, 1, 32)
    nibbles = np.concatenate([low & 15, low >> 4], axis=3)
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(4, 1)
    codes = (nibbles | ((high >> shifts) & 3) << 4).astype(np.int8) - np.int8(32)
    scales = b[:, :, 192:208].view(np.int8).reshape(len(b), -1)
    return codes.reshape(*b.shape[:2], 256), {
        "d": np.repeat(_half(b, 208), 2, axis=1),
        "sub_scale": scales,
    }


_DECODERS: Final[Mapping[str, Callable[[Bytes], tuple[NDArray[np.int8], Parts]]]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
