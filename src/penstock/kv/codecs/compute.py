"""Keys and values in the compute dtype: float32 and bfloat16. Lossless to attention under their arithmetic.

    bfloat16  64*D bf16 keys, 64*D bf16 values, both interleaved (kv/codec.py)
    float32   keys [4 groups of 16 tokens][D][16 tokens], then values [64 tokens][D]

D is head_dim rounded up to 32; the dims beyond head_dim hold zeros.
"""

from dataclasses import dataclass
from typing import ClassVar

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from penstock.kv.codec import BLOCK_TOKENS, CODECS, interleave, padded, padded_dim, uninterleave
from penstock.ops.rounding import to_bfloat16


@dataclass(frozen=True, slots=True)
class BFloat16:
    exact: ClassVar[bool] = True
    name: str = "bfloat16"

    def bytes_per_token(self, head_dim: int) -> int:
        return 4 * padded_dim(head_dim)

    def encode(self, keys: NDArray[np.float32], values: NDArray[np.float32]) -> NDArray[np.uint8]:
        rounded = (to_bfloat16(padded(rows)).astype(ml_dtypes.bfloat16) for rows in (keys, values))
        return np.concatenate(interleave(*rounded)).view(np.uint8)

    def decode(
        self, block: NDArray[np.uint8], head_dim: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        halves = block.view(ml_dtypes.bfloat16).reshape(2, -1)
        k, v = uninterleave(halves[0], halves[1], padded_dim(head_dim))
        return k[:, :head_dim].astype(np.float32), v[:, :head_dim].astype(np.float32)


@dataclass(frozen=True, slots=True)
class Float32:
    exact: ClassVar[bool] = True
    name: str = "float32"

    def bytes_per_token(self, head_dim: int) -> int:
        return 8 * padded_dim(head_dim)

    def encode(self, keys: NDArray[np.float32], values: NDArray[np.float32]) -> NDArray[np.uint8]:
        k = padded(keys).reshape(4, 16, -1).transpose(0, 2, 1).reshape(-1)
        return np.concatenate([k, padded(values).reshape(-1)]).view(np.uint8)

    def decode(
        self, block: NDArray[np.uint8], head_dim: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        dims = padded_dim(head_dim)
        k, v = block.view(np.float32).reshape(2, -1)
        keys = k.reshape(4, dims, 16).transpose(0, 2, 1).reshape(BLOCK_TOKENS, dims)
        return keys[:, :head_dim].copy(), v.reshape(BLOCK_TOKENS, dims)[:, :head_dim].copy()


CODECS.register("bfloat16")(BFloat16())
CODECS.register("float32")(Float32())
