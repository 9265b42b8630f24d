"""What a sliding window has passed is let go."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from penstock.kv.retention import RETENTIONS, HeldBlock


@RETENTIONS.register("window")
@dataclass(frozen=True, slots=True)
class Window:
    """Drop blocks wholly behind the window: the row at position p reads positions > p - window.

        block     0   1   2   3   4 | 5     the next row is the first of block 5
                 [dropped]  [ window ]

    Exact: nothing that is dropped would have been read.
    """

    window: int | None = None
    exact: ClassVar[bool] = True

    def drop(self, held: Sequence[HeldBlock], num_tokens: int, block_size: int) -> list[int]:
        if self.window is None:
            return []
        first_read = (num_tokens - self.window + 1) // block_size  # may be negative: all are read
        return [block.place for block in held if block.place < min(first_read, num_tokens // block_size - 1)]
