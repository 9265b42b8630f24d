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

Latents are keys alone: 64*D codes, then 64 scales.

Attention multiplies bf16 queries by the codes, which bf16 holds exactly, and the score by the key's scale;
the probability takes the value's scale before it is rounded to bf16. Groups of values with scales of their
own: Sheng et al. 2023, arXiv:2303.06865; Liu et al. 2024, arXiv:2402.02750.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from penstock.kv.codec import (
    BLOCK_TOKENS,
    CODECS,
    Codes,
    interleave_keys,
    interleave_values,
    padded,
    padded_dim,
    uninterleave_keys,
    uninterleave_values,
)
from penstock.ops.rounding import int8_codes

Rows = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Int8:
    exact: ClassVar[bool] = False
    name: str = "int8"

    def bytes_per_token(self, head_dim: int, *, has_values: bool = True) -> int:
        return (2 if has_values else 1) * (padded_dim(head_dim) + 4)

    def encode(self, keys: Rows, values: Rows | None) -> NDArray[np.uint8]:
        code, scale = int8_codes(padded(keys))
        codes: list[Codes] = [interleave_keys(code.astype(np.int8))]
        scales = [scale.reshape(-1)]
        if values is not None:
            code, scale = int8_codes(padded(values))
            codes.append(interleave_values(code.astype(np.int8)))
            scales.append(scale.reshape(-1))
        return np.concatenate([part.view(np.uint8) for part in (*codes, *scales)])

    def decode(self, block: NDArray[np.uint8], head_dim: int) -> tuple[Rows, Rows | None]:
        dims, size = padded_dim(head_dim), BLOCK_TOKENS * padded_dim(head_dim)
        parts = len(block) // (size + 4 * BLOCK_TOKENS)
        codes = block[: parts * size].view(np.int8).reshape(parts, -1)
        scales = block[parts * size :].view(np.float32).reshape(parts, BLOCK_TOKENS, 1)
        keys = uninterleave_keys(codes[0], dims)[:, :head_dim].astype(np.float32) * scales[0]
        if parts == 1:
            return keys, None
        return keys, uninterleave_values(codes[1], dims)[:, :head_dim].astype(np.float32) * scales[1]


CODECS.register("int8")(Int8())
