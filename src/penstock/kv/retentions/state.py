"""Of a recurrent state the latest is kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from penstock.kv.retention import RETENTIONS, HeldBlock


@RETENTIONS.register("state")
@dataclass(frozen=True, slots=True)
class State:
    """A block holds the state after the last computed token of its place, and the next row reads that alone.

        place     0      1      2      3
        block     -      7      -      9      9: the live state; 7: a checkpoint, which others may go on from

    A step reads the live state, and writes it where the step ends. What it passes is written only where a
    checkpoint is wanted, and let go at once: it stays cached for as long as nobody needs the block.
    """

    window: int | None = None
    exact: ClassVar[bool] = True
    fills_every_place: ClassVar[bool] = False

    def drop(self, held: Sequence[HeldBlock], num_tokens: int, block_size: int) -> list[int]:
        del num_tokens, block_size
        return [block.place for block in held[:-1]]

    def first_read(self, num_tokens: int, block_size: int) -> int:
        return max(0, (num_tokens - 1) // block_size)

    def peak_blocks(self, num_tokens: int, *, step_tokens: int, block_size: int) -> int:
        """What a step reads and what it writes."""
        del step_tokens
        return min(2, -(-num_tokens // block_size))
