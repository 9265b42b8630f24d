"""Everything is kept: what layers without a window need."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from penstock.kv.retention import RETENTIONS, HeldBlock


@RETENTIONS.register("full")
@dataclass(frozen=True, slots=True)
class Full:
    """Keep every block. Right for any window, and the only exact choice for layers without one."""

    window: int | None = None
    exact: ClassVar[bool] = True
    fills_every_place: ClassVar[bool] = True

    def drop(self, held: Sequence[HeldBlock], num_tokens: int, block_size: int) -> list[int]:
        del held, num_tokens, block_size
        return []

    def first_read(self, num_tokens: int, block_size: int) -> int:
        del num_tokens, block_size
        return 0

    def peak_blocks(self, num_tokens: int, *, step_tokens: int, block_size: int) -> int:
        del step_tokens
        return -(-num_tokens // block_size)
