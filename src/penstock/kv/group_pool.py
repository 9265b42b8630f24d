"""One KV group's memory: who may be handed out, what is known to hold what, what may be let go.

Used by KVManager alone, which sees to it that all groups of a request say the same.
"""

from collections.abc import Iterable, Sequence

from penstock.kv.block_pool import NULL_BLOCK, BlockPool
from penstock.kv.groups import KVGroup
from penstock.kv.prefix_index import PrefixIndex

WITHOUT_BOUND = 1 << 40  # places that a request which has one block can go on for


class GroupPool:
    """Blocks of one group. Where not every place is filled, the last of a step is, and checkpoints may be."""

    __slots__ = ("fills_every_place", "index", "pool", "retention")

    def __init__(self, group: KVGroup, num_blocks: int, *, tenant_share: float) -> None:
        self.index = PrefixIndex()
        self.pool = BlockPool(num_blocks, on_evict=self.index.remove, tenant_share=tenant_share)
        self.retention = group.rule()
        self.fills_every_place = self.retention.fills_every_place

    def num_unused(self, block_ids: Iterable[int]) -> int:
        """How many of these cached blocks count as free until they are shared."""
        return sum(1 for b in block_ids if b != NULL_BLOCK and self.pool.num_users(b) == 0)

    def num_needed(self, num_new: int) -> int:
        """Blocks that `num_new` more places cannot do without."""
        return num_new if self.fills_every_place else min(1, num_new)

    def max_new_places(self, num_free: int) -> int:
        """The converse: how far so many blocks reach."""
        return num_free if self.fills_every_place or num_free < 1 else WITHOUT_BOUND

    def peak_blocks(self, num_tokens: int, block_size: int) -> int:
        return self.retention.peak_blocks(num_tokens, step_tokens=1, block_size=block_size)

    def place_new(self, num_new: int, fresh: Sequence[int]) -> list[int]:
        """Ids of `num_new` new places, of which `fresh` are as many as are needed."""
        return [NULL_BLOCK] * (num_new - len(fresh)) + list(fresh)
