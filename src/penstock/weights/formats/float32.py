"""float32: the value itself. 4 B/weight; exact; FP32 arithmetic. For fp32 checkpoints.

A panel of 32 columns, for K padded to 64:

    offset                                        holds
    k*128 + 4*j                                   W[32p + j][k], fp32, j = 0 .. 31

One K is two lines of 64 bytes: sixteen columns each, one fp32 register of AVX-512.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from penstock.weights.format import FORMATS, K_MULTIPLE, PANEL_COLUMNS, padded, round_up


@dataclass(frozen=True, slots=True)
class Float32:
    exact: ClassVar[bool] = True
    operands: ClassVar[tuple[str, ...]] = ("float32",)
    name: str = "float32"

    def bytes_per_weight(self, k: int) -> float:
        return 4 * round_up(k, K_MULTIPLE) / k

    def pack(self, w: NDArray[np.float32]) -> NDArray[np.uint8]:
        w = padded(w)
        panels = w.reshape(-1, PANEL_COLUMNS, w.shape[1]).transpose(0, 2, 1)
        return np.ascontiguousarray(panels).reshape(-1).view(np.uint8)

    def unpack(self, packed: NDArray[np.uint8], n: int, k: int) -> NDArray[np.float32]:
        panels = packed.view(np.float32).reshape(-1, round_up(k, K_MULTIPLE), PANEL_COLUMNS)
        w = panels.transpose(0, 2, 1).reshape(-1, panels.shape[1])[:n, :k]
        return np.ascontiguousarray(w)


FORMATS.register("float32")(Float32())
