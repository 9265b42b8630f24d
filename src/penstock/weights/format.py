"""Seam: how a weight matrix W[N,K] lies in memory. Plug-ins live in formats/, each drawn byte by byte.

The numpy code here is the definition; native/pack*.cpp makes the same bytes faster, and the loader calls
that. It packs what it is given: whether a lossy format is wanted is the planner's affair.
"""

from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from penstock.registry import Registry

PANEL_COLUMNS = 32  # output columns of a panel
TILE_COLUMNS = 16  # a panel is two tiles wide
CODE_OPERANDS = ("bfloat16", "int8")  # of integer codes
K_MULTIPLE = 64  # K is padded to this with zero weights


class WeightFormat(Protocol):
    """One packed layout: panels of 32 columns, each one contiguous stream, K-major inside.

    N is padded to 32 columns and K to 64 with zero weights. Contract (tests/contracts/test_formats.py):
    a column's bytes are a function of its row of `w` alone; the error is within the bound the plug-in
    states; where `exact`, packing what was unpacked gives the same bytes; so does the native packer.
    """

    exact: ClassVar[bool]  # False: a checkpoint of any dtype loses by it

    @property
    def operands(self) -> tuple[str, ...]:
        """What its kernels multiply it with, one for each arithmetic contract; the first loses nothing."""
        ...

    @property
    def name(self) -> str:
        """The name in FORMATS."""
        ...

    def bytes_per_weight(self, k: int) -> float:
        """Bytes of one panel over its 32 * `k` weights: scales and the padding of K included."""
        ...

    def pack(self, w: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The bytes of w[N,K], one dimension. `w` is finite; it is not modified."""
        ...

    def unpack(self, packed: NDArray[np.uint8], n: int, k: int) -> NDArray[np.float32]:
        """The [n,k] weights that kernels compute with."""
        ...


FORMATS: Registry[WeightFormat] = Registry("weight format", "penstock.weights.formats")


def round_up(x: int, to: int) -> int:
    """The smallest multiple of `to` that is not below `x`."""
    return -(-x // to) * to


def padded(w: NDArray[np.float32]) -> NDArray[np.float32]:
    """w[N,K] with zero rows and columns up to whole panels and whole steps of K."""
    n, k = w.shape
    out = np.zeros((round_up(n, PANEL_COLUMNS), round_up(k, K_MULTIPLE)), np.float32)
    out[:n, :k] = w
    return out
