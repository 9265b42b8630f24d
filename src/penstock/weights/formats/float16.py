"""float16: for fp16 checkpoints, widened in the kernel. 2 B/weight; exact for what is fp16; FP32 contract.

Other values are rounded to the nearest fp16, ties to even; the planner gives this format fp16 sources only.
A panel of 32 columns, for K padded to 64:

    offset                                        holds
    k*64 + 2*j                                    W[32p + j][k], fp16, j = 0 .. 31

One K is one line of 64 bytes.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from penstock.weights.format import FORMATS, K_MULTIPLE, PANEL_COLUMNS, padded, round_up


@dataclass(frozen=True, slots=True)
class Float16:
    exact: ClassVar[bool] = True
    operands: ClassVar[tuple[str, ...]] = ("float32",)
    name: str = "float16"

    def bytes_per_weight(self, k: int) -> float:
        return 2 * round_up(k, K_MULTIPLE) / k

    def pack(self, w: NDArray[np.float32]) -> NDArray[np.uint8]:
        half = padded(w).astype(np.float16)
        panels = half.reshape(-1, PANEL_COLUMNS, half.shape[1]).transpose(0, 2, 1)
        return np.ascontiguousarray(panels).reshape(-1).view(np.uint8)

    def unpack(self, packed: NDArray[np.uint8], n: int, k: int) -> NDArray[np.float32]:
        panels = packed.view(np.float16).reshape(-1, round_up(k, K_MULTIPLE), PANEL_COLUMNS)
        w = panels.transpose(0, 2, 1).reshape(-1, panels.shape[1])[:n, :k]
        return w.astype(np.float32)


FORMATS.register("float16")(Float16())
