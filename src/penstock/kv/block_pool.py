"""The blocks of one KV group: free, in use (counted), or cached (unused, but a later hit may want them).

Integers only: a pool does not know what a block holds. Used by KVManager alone; refuses to hand out,
share or take back a block that is not in the state that this asks for.

      take            release, not cached
    free ----> in use ----> free
                 |  ^
         release |  | share          evict (when nothing is free, in the order of eviction.py)
                 v  |              ----> in use, as a new block
               cached
"""

from collections.abc import Callable

from penstock.kv.eviction import EvictionQueue

NULL_BLOCK = 0  # stands for a place whose block was let go: never handed out, never written


class BlockPool:
    """`num_blocks` ids, the null block among them: 1 .. num_blocks-1 can be handed out.

    `on_evict` is told of a cached block just before it becomes somebody else's. `tenant_share`: of the
    blocks, what one tenant may hold before its own cached ones go first. Every operation is O(1).
    """

    def __init__(
        self, num_blocks: int, on_evict: Callable[[int], None], *, tenant_share: float = 1.0
    ) -> None:
        assert num_blocks >= 2, f"a pool of {num_blocks} blocks holds nothing beside its null block"
        self.num_blocks = num_blocks
        self._on_evict = on_evict
        self._num_users = [0] * num_blocks
        self._is_cached = bytearray(num_blocks)
        # The block freed last is handed out first: memory never touched so far stays untouched longest.
        self._free = list(range(num_blocks - 1, NULL_BLOCK, -1))
        self._unused_cached = EvictionQueue(num_blocks, max(1, int(tenant_share * self.num_usable)))

    @property
    def num_usable(self) -> int:
        return self.num_blocks - 1

    @property
    def num_free(self) -> int:
        """Blocks that `take` can still give: the free and the cached that nobody uses."""
        return len(self._free) + len(self._unused_cached)

    @property
    def num_cached(self) -> int:
        return len(self._unused_cached)

    def num_held(self, tenant: str) -> int:
        """Blocks that this tenant's requests use, or have left cached."""
        return self._unused_cached.num_held(tenant)

    def num_users(self, block_id: int) -> int:
        return self._num_users[block_id]

    def is_cached(self, block_id: int) -> bool:
        return bool(self._is_cached[block_id])

    def take(self, tenant: str = "") -> int | None:
        """A block for one user, its content undefined; None: all are in use."""
        if self._free:
            block_id = self._free.pop()
        elif self._unused_cached:
            block_id = self._unused_cached.pop(tenant)
            self._on_evict(block_id)
            self._is_cached[block_id] = 0
        else:
            return None
        self._num_users[block_id] = 1
        self._unused_cached.hold(block_id, tenant)
        return block_id

    def share(self, block_id: int) -> None:
        """One more user of a cached block."""
        assert self._is_cached[block_id], f"block {block_id} is not cached, so it has no second reader"
        if self._num_users[block_id] == 0:
            self._unused_cached.remove(block_id)
        self._num_users[block_id] += 1

    def release(self, block_id: int) -> None:
        """One user less. The last one leaves it cached, as the most recently used, or free."""
        assert block_id != NULL_BLOCK, "the null block has no users"
        assert self._num_users[block_id] > 0, f"block {block_id} is released but nobody uses it"
        self._num_users[block_id] -= 1
        if self._num_users[block_id] == 0:
            if self._is_cached[block_id]:
                self._unused_cached.push(block_id)
            else:
                self._set_free(block_id)

    def cache(self, block_id: int) -> None:
        """From now on others may share this block, and nobody may write it."""
        assert self._num_users[block_id] == 1, f"block {block_id} is not one user's own"
        self._is_cached[block_id] = 1

    def uncache(self, block_id: int) -> None:
        """No more users than it has now; free at once if it has none."""
        assert self._is_cached[block_id], f"block {block_id} is not cached"
        self._is_cached[block_id] = 0
        if self._num_users[block_id] == 0:
            self._unused_cached.remove(block_id)
            self._set_free(block_id)

    def find_fault(self) -> str | None:
        """A broken invariant in words, or None. O(num_blocks)."""
        free, cached = set(self._free), set(self._unused_cached)
        used = {b for b, users in enumerate(self._num_users) if users > 0}
        if len(free) != len(self._free):
            return "a block is free twice"
        if free & cached or free & used or cached & used:
            return "a block is in two of: free, cached, in use"
        if free | cached | used != set(range(1, self.num_blocks)):
            return "a block is lost, or the null block is handed out"
        if any(users < 0 for users in self._num_users):
            return "a block has fewer than no users"
        if any(self._is_cached[b] for b in free) or not all(self._is_cached[b] for b in cached):
            return "a block's cached mark is wrong"
        return self._unused_cached.find_fault(free)

    def _set_free(self, block_id: int) -> None:
        self._unused_cached.drop(block_id)
        self._free.append(block_id)
