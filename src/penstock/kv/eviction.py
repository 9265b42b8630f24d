"""Which cached block goes when none is free: the one used longest ago, of whoever holds too much if any does.

A tenant (an API key) holds the blocks that its requests took, in use or left cached. One that takes a block
beyond its share, or is beyond it already, loses cached ones first; others lose theirs only when there are
none of these. So a flood of one tenant's prompts costs another nothing of what it holds within the rest.
Blocks in use are never taken away. With one tenant it is plain least recently used. Used by BlockPool alone.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterator


class EvictionQueue:
    """Every operation is O(1): at most 1/share tenants are beyond their share; only they are looked at."""

    def __init__(self, num_blocks: int, most_held: int) -> None:
        self._most_held = most_held
        self._tenant_of: list[str | None] = [None] * num_blocks
        self._num_held: dict[str, int] = {}
        self._beyond: dict[str, None] = {}  # tenants that hold more than their share
        self._unused: OrderedDict[int, None] = OrderedDict()  # of all, least recently used first
        self._unused_of: dict[str, OrderedDict[int, None]] = {}

    def __len__(self) -> int:
        return len(self._unused)

    def __iter__(self) -> Iterator[int]:
        """Evictable blocks, least recently used first."""
        return iter(self._unused)

    def num_held(self, tenant: str) -> int:
        return self._num_held.get(tenant, 0)

    def hold(self, block_id: int, tenant: str) -> None:
        """From now on the block is this tenant's."""
        num_held = self._num_held[tenant] = self.num_held(tenant) + 1
        self._tenant_of[block_id] = tenant
        if num_held > self._most_held:
            self._beyond[tenant] = None

    def drop(self, block_id: int) -> None:
        """It is nobody's any more."""
        tenant = self._owner(block_id)
        self._tenant_of[block_id] = None
        num_held = self._num_held[tenant] - 1
        if num_held == 0:
            del self._num_held[tenant]
        else:
            self._num_held[tenant] = num_held
        if num_held <= self._most_held:
            self._beyond.pop(tenant, None)

    def push(self, block_id: int) -> None:
        """Nobody uses it: it may go, after all that were pushed before it."""
        self._unused[block_id] = None
        self._unused_of.setdefault(self._owner(block_id), OrderedDict())[block_id] = None

    def remove(self, block_id: int) -> None:
        """It is used again, or forgotten."""
        del self._unused[block_id]
        tenant = self._owner(block_id)
        unused = self._unused_of[tenant]
        del unused[block_id]
        if not unused:
            del self._unused_of[tenant]

    def pop(self, tenant: str) -> int:
        """The block that goes for one that `tenant` takes, the one that holds most losing first."""
        queue, most = self._unused, self._most_held
        for other in {**self._beyond, tenant: None} if len(self._num_held) > 1 else ():
            num_held = self.num_held(other) + (other == tenant)
            if num_held > most and other in self._unused_of:
                queue, most = self._unused_of[other], num_held
        block_id = next(iter(queue))
        self.remove(block_id)
        self.drop(block_id)
        return block_id

    def find_fault(self, free: set[int]) -> str | None:
        """A broken invariant in words, or None: every block that is not free has a tenant. O(blocks)."""
        owners = {b: tenant for b, tenant in enumerate(self._tenant_of) if tenant is not None}
        if set(owners) & free or len(owners) + len(free) != len(self._tenant_of) - 1:
            return "a free block is somebody's, or another is nobody's"
        held = Counter(owners.values())
        if held != self._num_held or set(self._beyond) != {t for t in held if held[t] > self._most_held}:
            return "a tenant's blocks are miscounted"
        if any(owners[b] != t for t, unused in self._unused_of.items() for b in unused):
            return "an evictable block is listed under another tenant"
        if sorted(self._unused) != sorted(b for unused in self._unused_of.values() for b in unused):
            return "the evictable blocks of all tenants are not those of each"
        return None

    def _owner(self, block_id: int) -> str:
        tenant = self._tenant_of[block_id]
        assert tenant is not None, f"block {block_id} is nobody's"
        return tenant
