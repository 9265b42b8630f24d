"""SEAM: which blocks of a request are kept. Exact ones let go only what no later row can read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from penstock.model.spec import KVGroupSpec
from penstock.registry import Registry


@dataclass(frozen=True, slots=True)
class HeldBlock:
    """A block that a request still holds; `place` counts blocks from the beginning of its text."""

    place: int


class Retention(Protocol):
    """What is kept is a function of this request's blocks alone, whatever the steps were: so even a lossy
    policy gives one output for every chunking and every restart.

    Contract (tests/contracts/test_retention.py): drops only what is held, never the latest block; asked
    again about what it kept, drops no more. An exact one drops no block that a later row reads.
    """

    exact: ClassVar[bool]  # False: lossy; off by default, with a row in the quality ledger
    # A block for every place of the text; or only for the place reached last, and for checkpoints on the way.
    fills_every_place: ClassVar[bool]

    def drop(self, held: Sequence[HeldBlock], num_tokens: int, block_size: int) -> list[int]:
        """Places of the held blocks to let go, oldest first: no row after `num_tokens` tokens reads them.

        Where every place is filled, asked each time a block is full: at multiples of `block_size`.
        """
        ...

    def first_read(self, num_tokens: int, block_size: int) -> int:
        """First place that the row after `num_tokens` tokens reads."""
        ...

    def peak_blocks(self, num_tokens: int, *, step_tokens: int, block_size: int) -> int:
        """Most blocks that a request of `num_tokens` must hold at once, in steps of `step_tokens`."""
        ...


# A retention is made for the attention window of its layers (None: they read everything, or have none).
RETENTIONS: Registry[Callable[[int | None], Retention]] = Registry("KV retention", "penstock.kv.retentions")


def exact_for(spec: KVGroupSpec) -> str:
    """The name of the exact retention of these layers."""
    if spec.is_state:
        return "state"
    return "full" if spec.window is None else "window"
