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
    fills_every_place: ClassVar[bool] = True

    def drop(self, held: Sequence[HeldBlock], num_tokens: int, block_size: int) -> list[int]:
        kept_from = min(self.first_read(num_tokens, block_size), num_tokens // block_size - 1)
        return [block.place for block in held if block.place < kept_from]

    def first_read(self, num_tokens: int, block_size: int) -> int:
        return 0 if self.window is None else max(0, (num_tokens - self.window + 1) // block_size)

    def peak_blocks(self, num_tokens: int, *, step_tokens: int, block_size: int) -> int:
        """What the window can touch from a block's beginning, the block before it at least (the latest is
        never dropped), and what one step writes."""
        whole = -(-num_tokens // block_size)
        if self.window is None:
            return whole
        behind = max(1, -(-(self.window - 1) // block_size))
        return min(whole, behind + -(-step_tokens // block_size) + (step_tokens > 1))
