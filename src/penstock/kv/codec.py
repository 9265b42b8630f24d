"""SEAM: how keys and values lie in a block. Plug-ins live in codecs/, each drawn byte by byte.

The numpy code here is the definition; native/kernels/kv_rows.h writes the same bytes and attention reads
them. What the values become is a rounding point of the program (ops.rounding); both must say the same.
"""

from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from penstock.registry import Registry

BLOCK_TOKENS = 64  # of a block on the cpu backend
DIM_MULTIPLE = 32  # heads are padded to this with zeros


class KVCodec(Protocol):
    """One head's part of a block: keys[P,D] and values[P,D] of P = 64 tokens as bytes, and back.

    Contract (tests/contracts/test_codecs.py): a token's bytes depend on that token's key and value alone; the
    size is as stated; what comes back is what ops.rounding rounds to, within the bound the plug-in states.
    Rows are read back through the codec even within their step, so the output is the same for every
    schedule (DESIGN.md 9.26).
    """

    exact: ClassVar[bool]  # False: attention in the compute dtype loses by it

    @property
    def name(self) -> str:
        """The name in CODECS, and what `ops.rounding.round_to` takes as `to`."""
        ...

    def bytes_per_token(self, head_dim: int, *, has_values: bool = True) -> int:
        """Bytes of one token's key and value in one head: scales and the padding of dims included."""
        ...

    def encode(self, keys: NDArray[np.float32], values: NDArray[np.float32] | None) -> NDArray[np.uint8]:
        """The 64 * bytes_per_token bytes of one head's block: keys, then values. Modifies nothing.

        Latents (MLA) have no values of their own: they are the first dims of the keys, as they come back.
        """
        ...

    def decode(
        self, block: NDArray[np.uint8], head_dim: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Keys and values that attention computes with; None where the block is as long as keys alone."""
        ...


CODECS: Registry[KVCodec] = Registry("KV codec", "penstock.kv.codecs")


def padded_dim(head_dim: int) -> int:
    return -(-head_dim // DIM_MULTIPLE) * DIM_MULTIPLE


def padded(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """rows[P,D] with zero dims up to a whole multiple."""
    out = np.zeros((len(rows), padded_dim(rows.shape[1])), np.float32)
    out[:, : rows.shape[1]] = rows
    return out


Codes = NDArray[np.generic]  # of any type: layouts move elements and do not look at them


def interleave_keys(keys: Codes) -> Codes:
    """[P,D] as two-element operands of a tile product.

    [4 groups of 16 tokens][D/32][16 pairs of dims][16 tokens][2 dims]
    """
    k = keys.reshape(4, 16, keys.shape[1] // 32, 16, 2).transpose(0, 2, 3, 1, 4)
    return np.ascontiguousarray(k).reshape(-1)


def interleave_values(values: Codes) -> Codes:
    """The same of values: [2 groups of 32 tokens][D/16][16 pairs of tokens][16 dims][2 tokens]."""
    v = values.reshape(2, 16, 2, values.shape[1] // 16, 16).transpose(0, 3, 1, 4, 2)
    return np.ascontiguousarray(v).reshape(-1)


def uninterleave_keys(keys: Codes, dims: int) -> Codes:
    """The inverse; `dims` is padded."""
    return keys.reshape(4, dims // 32, 16, 16, 2).transpose(0, 3, 1, 2, 4).reshape(BLOCK_TOKENS, dims)


def uninterleave_values(values: Codes, dims: int) -> Codes:
    return values.reshape(2, dims // 16, 16, 16, 2).transpose(0, 2, 4, 1, 3).reshape(BLOCK_TOKENS, dims)
