"""Hidden rows of a prompt -> its embedding: the last row, the first or the mean of all, scaled to length 1.

Called by InputBuilder, which knows the rows of a step. A mean is summed in float64, row by row in the order
of their positions, so that its bits depend on no chunk, batch, preemption or cached beginning.
"""

import math

import numpy as np
from numpy.typing import NDArray

from penstock.errors import InvalidRequestError
from penstock.model.pooling import POOLINGS
from penstock.request import Request


def check_pooling(pooling: str) -> None:
    if pooling not in POOLINGS:
        raise InvalidRequestError(
            f"pooling is {pooling!r:.40}; it must be one of {', '.join(POOLINGS)}.", param="pooling"
        )


class Pooler:
    """One per engine core. `Request.num_pooled_tokens` says how many rows a sum has: the scheduler counts.

    `is_normalized`: vectors are scaled to length 1.
    """

    def __init__(self, *, is_normalized: bool = True) -> None:
        self._is_normalized = is_normalized
        self._sums: dict[str, NDArray[np.float64]] = {}

    def positions(self, request: Request, start: int, end: int) -> range:
        """Those of a step's positions whose hidden rows are wanted."""
        if request.pooling == "last":
            return range(max(start, request.num_prompt_tokens - 1), end)
        if request.pooling == "cls":
            return range(start, 1)
        return range(max(start, request.num_pooled_tokens), end)

    def take(self, request: Request, rows: NDArray[np.float32]) -> bytes | None:
        """Add rows, which follow those before. With the last, the embedding: float32 as it lies in memory."""
        if len(rows) == 0:
            return None
        if request.pooling in ("last", "cls"):
            return self._to_bytes(rows[-1].astype(np.float64))
        total = self._sums.get(request.request_id)
        if total is None:
            total = self._sums[request.request_id] = np.zeros(rows.shape[1], np.float64)
        for row in rows:
            total += row
        if request.num_pooled_tokens + len(rows) < request.num_prompt_tokens:
            return None
        return self._to_bytes(total / request.num_prompt_tokens)

    def forget(self, request_id: str) -> None:
        """The request has ended. Harmless if it was never seen."""
        self._sums.pop(request_id, None)

    def _to_bytes(self, vector: NDArray[np.float64]) -> bytes:
        length = math.sqrt(float(np.square(vector).sum())) if self._is_normalized else 0.0
        if length > 0:
            vector = vector / length
        return vector.astype(np.float32).tobytes()
