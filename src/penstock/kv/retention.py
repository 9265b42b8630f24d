"""SEAM: which blocks of a request are kept. Exact ones let go only what no later row can read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from penstock.registry import Registry


@dataclass(frozen=True, slots=True)
class HeldBlock:
    """A block that a request still holds; `place` counts blocks from the beginning of its text."""

    place: int


class Retention(Protocol):
    """Asked each time a request fills a block, whatever the steps were: rows from `num_tokens` on do not
    read what is dropped. So even a lossy policy gives one output for every chunking and every restart.

    Contract (tests/contracts/test_retention.py): a function of this request's blocks alone; drops only
    what is held, never the latest block; asked again about what it kept, drops no more. An exact one
    drops no block with a token that a later row reads.
    """

    exact: ClassVar[bool]  # False: lossy; off by default, with a row in the quality ledger

    def drop(self, held: Sequence[HeldBlock], num_tokens: int, block_size: int) -> list[int]:
        """Places of the held blocks to let go, oldest first. `num_tokens` is a multiple of `block_size`."""
        ...


# A retention is made for the attention window of its layers (None: they read everything).
RETENTIONS: Registry[Callable[[int | None], Retention]] = Registry("KV retention", "penstock.kv.retentions")


def exact_for(window: int | None) -> str:
    """The name of the exact retention of layers with this window."""
    return "full" if window is None else "window"
