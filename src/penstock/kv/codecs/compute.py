"""Keys and values in the compute dtype: float32 and bfloat16. Lossless to attention under their arithmetic.

    bfloat16  64*D bf16 keys, 64*D bf16 values, both interleaved (kv/codec.py)
    float32   keys [4 groups of 16 tokens][D][16 tokens], then values [64 tokens][D]

D is head_dim rounded up to 32; the dims beyond head_dim hold zeros. Latents are keys alone.
"""

from dataclasses import dataclass
from typing import ClassVar

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from penstock.kv.codec import (
    BLOCK_TOKENS,
    CODECS,
    interleave_keys,
    interleave_values,
    padded,
    padded_dim,
    uninterleave_keys,
    uninterleave_values,
)
from penstock.ops.rounding import to_bfloat16

Rows = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class BFloat16:
    exact: ClassVar[bool] = True
    name: str = "bfloat16"

    def bytes_per_token(self, head_dim: int, *, has_values: bool = True) -> int:
        return (4 if has_values else 2) * padded_dim(head_dim)

    def encode(self, keys: Rows, values: Rows | None) -> NDArray[np.uint8]:
        parts = [interleave_keys(_bfloat16(keys))]
        parts += [] if values is None else [interleave_values(_bfloat16(values))]
        return np.concatenate(parts).view(np.uint8)

    def decode(self, block: NDArray[np.uint8], head_dim: int) -> tuple[Rows, Rows | None]:
        dims, held = padded_dim(head_dim), block.view(ml_dtypes.bfloat16)
        k, rest = held[: BLOCK_TOKENS * dims], held[BLOCK_TOKENS * dims :]
        keys = uninterleave_keys(k, dims)[:, :head_dim].astype(np.float32)
        if not len(rest):
            return keys, None
        return keys, uninterleave_values(rest, dims)[:, :head_dim].astype(np.float32)


def _bfloat16(rows: Rows) -> NDArray[np.generic]:
    return to_bfloat16(padded(rows)).astype(ml_dtypes.bfloat16)


@dataclass(frozen=True, slots=True)
class Float32:
    exact: ClassVar[bool] = True
    name: str = "float32"

    def bytes_per_token(self, head_dim: int, *, has_values: bool = True) -> int:
        return (8 if has_values else 4) * padded_dim(head_dim)

    def encode(self, keys: Rows, values: Rows | None) -> NDArray[np.uint8]:
        parts = [padded(keys).reshape(4, 16, -1).transpose(0, 2, 1).reshape(-1)]
        parts += [] if values is None else [padded(values).reshape(-1)]
        return np.concatenate(parts).view(np.uint8)

    def decode(self, block: NDArray[np.uint8], head_dim: int) -> tuple[Rows, Rows | None]:
        dims, held = padded_dim(head_dim), block.view(np.float32)
        k, rest = held[: BLOCK_TOKENS * dims], held[BLOCK_TOKENS * dims :]
        keys = k.reshape(4, dims, 16).transpose(0, 2, 1).reshape(BLOCK_TOKENS, dims)[:, :head_dim].copy()
        return keys, rest.reshape(BLOCK_TOKENS, dims)[:, :head_dim].copy() if len(rest) else None


CODECS.register("bfloat16")(BFloat16())
CODECS.register("float32")(Float32())
