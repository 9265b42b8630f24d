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

    def bytes_per_token(self, head_dim: int) -> int:
        """Bytes of one token's key and value in one head: scales and the padding of dims included."""
        ...

    def encode(self, keys: NDArray[np.float32], values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The 64 * bytes_per_token bytes of one head's block. Modifies nothing."""
        ...

    def decode(
        self, block: NDArray[np.uint8], head_dim: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Keys and values that attention computes with."""
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


def interleave(keys: Codes, values: Codes) -> tuple[Codes, Codes]:
    """[P,D] each, as two-element operands of a tile product.

    K [4 groups of 16 tokens][D/32][16 pairs of dims][16 tokens][2 dims]
    V [2 groups of 32 tokens][D/16][16 pairs of tokens][16 dims][2 tokens]
    """
    dims = keys.shape[1]
    k = keys.reshape(4, 16, dims // 32, 16, 2).transpose(0, 2, 3, 1, 4)
    v = values.reshape(2, 16, 2, dims // 16, 16).transpose(0, 3, 1, 4, 2)
    return np.ascontiguousarray(k).reshape(-1), np.ascontiguousarray(v).reshape(-1)


def uninterleave(keys: Codes, values: Codes, dims: int) -> tuple[Codes, Codes]:
    """The inverse of `interleave`; `dims` is padded."""
    k = keys.reshape(4, dims // 32, 16, 16, 2).transpose(0, 3, 1, 2, 4).reshape(BLOCK_TOKENS, dims)
    v = values.reshape(2, dims // 16, 16, 16, 2).transpose(0, 2, 4, 1, 3).reshape(BLOCK_TOKENS, dims)
    return k, v
