"""int8: one signed byte per value, one fp32 scale per token and head for keys, one for values. Lossy.

    amax  = the largest |x| of the token's key (value) in this head
    scale = amax * (1 / 127); 0 where amax is below 2**-118, NaN where it is not finite
    code  = rne(x * (127 / amax)); 0 where the scale is 0 or NaN
    x ~ code * scale        |error| <= scale / 2, and an ulp of the product

    offset (D: head_dim rounded up to 32)     holds
    0 .. 64*D-1                               codes of the keys, interleaved (kv/codec.py)
    64*D .. 128*D-1                           codes of the values, interleaved
    128*D + 4*token                           scales of the keys, fp32
    128*D + 256 + 4*token                     scales of the values, fp32

Attention multiplies bf16 queries by the codes, which bf16 holds exactly, and the score by the key's scale;
the probability takes the value's scale before it is rounded to bf16. Groups of values with scales of their
own: Sheng et al. 2023, arXiv:2303.06865; Liu et al. 2024, arXiv:2402.02750.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from penstock.kv.codec import BLOCK_TOKENS, CODECS, interleave, padded, padded_dim, uninterleave
from penstock.ops.rounding import int8_codes


@dataclass(frozen=True, slots=True)
class Int8:
    exact: ClassVar[bool] = False
    name: str = "int8"

    def bytes_per_token(self, head_dim: int) -> int:
        return 2 * (padded_dim(head_dim) + 4)

    def encode(self, keys: NDArray[np.float32], values: NDArray[np.float32]) -> NDArray[np.uint8]:
        (k, k_scale), (v, v_scale) = (int8_codes(padded(rows)) for rows in (keys, values))
        codes = interleave(k.astype(np.int8), v.astype(np.int8))
        parts = (*codes, k_scale.reshape(-1), v_scale.reshape(-1))
        return np.concatenate([part.view(np.uint8) for part in parts])

    def decode(
        self, block: NDArray[np.uint8], head_dim: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        dims = padded_dim(head_dim)
        codes = block[: 2 * BLOCK_TOKENS * dims].view(np.int8).reshape(2, -1)
        scales = block[2 * BLOCK_TOKENS * dims :].view(np.float32).reshape(2, BLOCK_TOKENS, 1)
        k, v = uninterleave(codes[0], codes[1], dims)
        return (
            k[:, :head_dim].astype(np.float32) * scales[0],
            v[:, :head_dim].astype(np.float32) * scales[1],
        )


CODECS.register("int8")(Int8())
