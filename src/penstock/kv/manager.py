"""Which blocks a request holds and what it can take over from others: the scheduler's only door to KV memory.

Keeps one pool, one prefix index and one retention per KV group. Plain integers; refuses to hold more than
there is by saying False, and leaves everything as it was then, also when something is raised half way.

    tokens of a request    |0 .. 63|64 .. 127|128 .. 191|192 ..      block_size 64
    full attention group   |   7   |    3    |    12    |   9        block ids
    window group           |   0   |    0    |     5    |   2        0: the null block, let go
    recurrent state group  |   0   |    8    |     0    |   4        4: the live state; 8: a checkpoint

No block is ever copied on write. Requests share only full blocks, whose keys and values are final; the block
that is being filled belongs to one request, and a prefix hit ends before the last known token, so that forks
of one prompt (n > 1) each compute their own last, partial block. A state is overwritten as its request goes
on; what others may read of it are checkpoints: the state after a whole number of blocks, each in a block of
its own, made where they are worth it and while nobody else needs the block.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from penstock.errors import EngineError
from penstock.kv.block_pool import NULL_BLOCK, BlockPool
from penstock.kv.block_table import BlockIds, BlockTable
from penstock.kv.group_pool import GroupPool
from penstock.kv.groups import KVGroup
from penstock.kv.integrity import find_fault
from penstock.kv.prefix_index import Link, Linker
from penstock.request import Request


@dataclass(frozen=True, slots=True)
class PrefixHit:
    """A cached beginning of a request, in whole blocks. Holds nothing until it is allocated."""

    num_tokens: int
    block_ids: BlockIds
    is_growing: bool  # the next block is being computed for another request in this step: better wait for it


class KVManager:
    """Owns every block. Called from one thread. A request's counters are read here and never written.

    `cache_key` goes into every link: whatever else decides what the bytes of a block are (dtype, codec).
    `checkpoint_blocks`: every how many blocks of a text its state is kept for others; and at a prompt's end.
    `tenant_share`: of each pool, what the requests of one API key may hold before its own cached blocks go
    first (eviction.py).
    """

    def __init__(
        self,
        groups: Sequence[KVGroup],
        num_blocks: Sequence[int],
        *,
        block_size: int,
        prefix_cache: bool = True,
        cache_key: str = "",
        checkpoint_blocks: int = 1,
        tenant_share: float = 1.0,
        hash_secret: bytes | None = None,
    ) -> None:
        self.block_size = block_size
        self._groups = [
            GroupPool(group, n, tenant_share=tenant_share)
            for group, n in zip(groups, num_blocks, strict=True)
        ]
        self._states = [(g, group) for g, group in enumerate(self._groups) if not group.fills_every_place]
        self._checkpoint_blocks = checkpoint_blocks
        self._prefix_cache = prefix_cache
        self._cache_key = cache_key
        self._linker = Linker(os.urandom(32) if hash_secret is None else hash_secret)
        self._tables: dict[str, BlockTable] = {}
        self._links: dict[str, list[Link]] = {}
        self._growing: dict[bytes, str] = {}  # link key -> the request that computes it in this step
        self.no_hit = PrefixHit(0, tuple(() for _ in self._groups), is_growing=False)

    @property
    def num_free_blocks(self) -> tuple[int, ...]:
        """Per group: what can be handed out now, cached blocks without a user included."""
        return tuple(group.pool.num_free for group in self._groups)

    @property
    def num_usable_blocks(self) -> tuple[int, ...]:
        return tuple(group.pool.num_usable for group in self._groups)

    @property
    def capacity_tokens(self) -> int:
        """What the tightest group holds: the bound to name when `fits_ever` says no."""
        return min(self.num_usable_blocks) * self.block_size

    @property
    def has_states(self) -> bool:
        """Whether a step that came to nothing has left its mark: a state goes on, where keys and values are
        written again as they were. Then drafts cannot be taken back, either."""
        return bool(self._states)

    def fits_ever(self, num_tokens: int) -> bool:
        """Whether a request of `num_tokens` can be computed once it has all blocks for itself."""
        size = self.block_size
        return all(group.peak_blocks(num_tokens, size) <= group.pool.num_usable for group in self._groups)

    def block_ids(self, request: Request) -> BlockIds:
        """The request's table; the same object until it changes."""
        return self._tables[request.request_id].frozen()

    def find_prefix(self, request: Request) -> PrefixHit:
        """The longest cached beginning that the request may take over: whole blocks, never its last token.

        A group needs only the blocks that the next row reads: those of a window, or the state at the very
        end. Prompt rows that owe a logprob or their part of a mean are not skipped (DESIGN.md 9.27). Changes
        nothing.
        """
        links = self._links_of(request, self._max_hit_tokens(request) // self.block_size)
        if not links:
            return self.no_hit
        reach = len(links)
        found: list[list[int]] = []
        for group in self._groups:
            reads_all = group.retention.first_read(reach * self.block_size, self.block_size) == 0
            ids = []
            for link in links[:reach]:
                block_id = group.index.find(link)
                if block_id is None and reads_all:
                    break
                ids.append(block_id or NULL_BLOCK)
            reach = len(ids)
            found.append(ids)
        first = [0] * len(found)
        while reach > 0:  # a shorter hit reads from further back, so it must end before the first hole
            size = self.block_size
            first = [group.retention.first_read(reach * size, size) for group in self._groups]
            holes = [
                p
                for ids, f in zip(found, first, strict=True)
                for p in range(f, reach)
                if ids[p] == NULL_BLOCK
            ]
            if not holes:
                break
            reach = min(holes)
        is_growing = reach < len(links) and links[reach].key in self._growing
        if reach == 0:
            return PrefixHit(0, self.no_hit.block_ids, is_growing)
        block_ids = tuple(
            (NULL_BLOCK,) * f + tuple(ids[f:reach]) for ids, f in zip(found, first, strict=True)
        )
        return PrefixHit(reach * self.block_size, block_ids, is_growing)

    def has_room(self, request: Request, hit: PrefixHit, running: Iterable[Request]) -> bool:
        """Whether `request` can start now without taking blocks from those who run.

        Counted for it: all its tokens so far and one more. Kept back for each running request: the same,
        less what it holds. So nobody is admitted only to be preempted while it is still reading its prompt.
        """
        others = [(self._target_tokens(r), self._tables[r.request_id]) for r in running]
        target = self._target_tokens(request)
        for g, group in enumerate(self._groups):
            ids = hit.block_ids[g]
            hit_blocks = sum(1 for b in ids if b != NULL_BLOCK)
            need = group.peak_blocks(target, self.block_size) - hit_blocks + group.num_unused(ids)
            for tokens, table in others:
                need += max(0, group.peak_blocks(tokens, self.block_size) - len(table.held[g]))
            if need > group.pool.num_free:
                return False
        return True

    def max_new_tokens(self, request: Request, hit: PrefixHit) -> int:
        """Most tokens that `allocate` can grant now. `hit` counts only for a request without blocks."""
        table = self._tables.get(request.request_id)
        if table is not None:
            room = min(group.max_new_places(group.pool.num_free) for group in self._groups)
            return (table.num_places + room) * self.block_size - request.num_computed_tokens
        room = min(
            group.max_new_places(group.pool.num_free - group.num_unused(ids))
            for group, ids in zip(self._groups, hit.block_ids, strict=True)
        )
        return room * self.block_size

    def allocate(self, request: Request, num_tokens: int, hit: PrefixHit | None = None) -> bool:
        """See to it that the request has blocks for `num_tokens` after its computed ones.

        A request without blocks begins with those of `hit`, whose tokens it counts as computed from then on.
        False: there are not enough, and nothing has changed. Asking for the same again changes nothing.
        """
        table = self._tables.get(request.request_id)
        hit = hit or self.no_hit
        begin = request.num_computed_tokens if table is not None else hit.num_tokens
        end = begin + num_tokens
        links: list[Link] = []
        if self._prefix_cache and end // self.block_size > begin // self.block_size:
            num_full = min(end, len(request.tokens)) // self.block_size  # drafts are not known to be kept
            links = self._links_of(request, num_full)[begin // self.block_size :]
        num_places = -(-end // self.block_size)
        if table is None:
            table = BlockTable(hit.block_ids)
            if not self._extend(request, table, num_places, shared=hit.block_ids):
                return False
            self._tables[request.request_id] = table
        elif num_places > table.num_places and not self._extend(
            request, table, num_places, shared=self.no_hit.block_ids
        ):
            return False
        for link in links:
            if link.key not in self._growing:
                self._growing[link.key] = request.request_id
                table.growing.append(link.key)
        return True

    def commit(self, request: Request) -> None:
        """Offer the blocks that the request has filled to others, and let go what it will not read again."""
        table = self._tables[request.request_id]
        num_full = request.num_computed_tokens // self.block_size
        if num_full > table.num_committed:
            self._stop_growing(table)
            links = self._links_of(request, num_full)
            for g, group in enumerate(self._groups):
                self._offer(request, table, g, links)
                for n in range(table.num_committed + 1, num_full + 1) if group.fills_every_place else ():
                    held = table.held_before(g, n)
                    self._let_go(table, g, group.retention.drop(held, n * self.block_size, self.block_size))
            table.num_committed = num_full
        for g, group in self._states:
            if len(table.held[g]) > 1:  # the last is live; what it came from is not needed any more
                places = group.retention.drop(table.held[g], request.num_computed_tokens, self.block_size)
                self._let_go(table, g, places)

    def free(self, request: Request) -> None:
        """Take back its blocks, if it has any. Cached ones stay cached; the last will be evicted first."""
        self._links.pop(request.request_id, None)
        table = self._tables.pop(request.request_id, None)
        if table is None:
            return
        self._stop_growing(table)
        for group, ids in zip(self._groups, table.block_ids, strict=True):
            for block_id in reversed(ids):
                if block_id != NULL_BLOCK:
                    group.pool.release(block_id)

    def reset_prefix_cache(self) -> None:
        """Forget what is cached. Requests that run keep their blocks."""
        for group in self._groups:
            for block_id in list(group.index):
                group.index.remove(block_id)
                group.pool.uncache(block_id)

    def check_integrity(self) -> None:
        """EngineError if references, cached blocks or tables disagree. Slow; for tests and after faults."""
        for g, group in enumerate(self._groups):
            fault = find_fault(g, group.pool, group.index, self._tables, self._links)
            if fault is not None:
                raise EngineError(f"KV group {g}: {fault}; this is a defect of penstock, please report it.")
        if not set(self._growing.values()) <= set(self._tables):
            raise EngineError("KV: a request without blocks computes some; this is a defect of penstock.")

    def _offer(self, request: Request, table: BlockTable, g: int, links: Sequence[Link]) -> None:
        """Let others find the places of group `g` that are full since the last commit."""
        group, ids = self._groups[g], table.block_ids[g]
        for place in range(table.num_committed, len(links)):
            if not group.fills_every_place and not self._is_checkpoint(request, place):
                continue
            if ids[place] != NULL_BLOCK and group.index.publish(links[place], ids[place]):
                group.pool.cache(ids[place])

    def _let_go(self, table: BlockTable, g: int, places: Sequence[int]) -> None:
        for block_id in table.let_go(g, places) if places else ():
            self._groups[g].pool.release(block_id)

    def _is_checkpoint(self, request: Request, place: int) -> bool:
        """Whether others may want to go on from the state at the end of this place."""
        last = (request.num_prompt_tokens - 1) // self.block_size - 1  # the longest hit of the same prompt
        return self._prefix_cache and (place == last or (place + 1) % self._checkpoint_blocks == 0)

    def _target_tokens(self, request: Request) -> int:
        most = request.num_prompt_tokens + request.max_output_tokens - 1  # the last token is never computed
        return max(len(request.tokens), min(len(request.tokens) + 1, most))

    def _max_hit_tokens(self, request: Request) -> int:
        return request.first_owed_row if self._prefix_cache else 0

    def _links_of(self, request: Request, num_links: int) -> list[Link]:
        """The first `num_links` links of the request's tokens; each is hashed once."""
        if num_links == 0 or not self._prefix_cache:
            return []
        links = self._links.setdefault(request.request_id, [])
        while len(links) < num_links:
            begin = len(links) * self.block_size
            tokens = request.tokens[begin : begin + self.block_size]
            parent = links[-1] if links else None
            links.append(self._linker.link(parent, tokens, salt=request.cache_salt, extra=self._cache_key))
        return links[:num_links]

    def _extend(self, request: Request, table: BlockTable, num_places: int, *, shared: BlockIds) -> bool:
        """Share `shared` and take new blocks up to `num_places`, in every group or in none."""
        num_new = num_places - table.num_places
        for group, ids in zip(self._groups, shared, strict=True):
            if group.pool.num_free - group.num_unused(ids) < group.num_needed(num_new):
                return False
        taken: list[list[int]] = [[] for _ in self._groups]
        users: list[tuple[BlockPool, int]] = []
        try:
            for group, ids in zip(self._groups, shared, strict=True):
                for block_id in ids:
                    if block_id != NULL_BLOCK:
                        group.pool.share(block_id)
                        users.append((group.pool, block_id))
            for group, new in zip(self._groups, taken, strict=True):
                while len(new) < group.num_needed(num_new):
                    fresh = group.pool.take(request.key_id)
                    if fresh is None:
                        self._release(users)
                        return False
                    users.append((group.pool, fresh))
                    new.append(fresh)
            placed = [group.place_new(num_new, new) for group, new in zip(self._groups, taken, strict=True)]
            for g, group in self._states:
                self._add_checkpoints(request, table.num_places, placed[g], group, users)
        except BaseException:
            self._release(users)
            raise
        table.extend(placed)
        return True

    def _add_checkpoints(
        self,
        request: Request,
        first_place: int,
        placed: list[int],
        group: GroupPool,
        users: list[tuple[BlockPool, int]],
    ) -> None:
        """Blocks for states on the way, as long as every running request can still have one more."""
        for index in range(len(placed) - 1):
            if not self._is_checkpoint(request, first_place + index):
                continue
            fresh = group.pool.take(request.key_id) if group.pool.num_free > len(self._tables) else None
            if fresh is None:
                return
            users.append((group.pool, fresh))
            placed[index] = fresh

    def _release(self, users: list[tuple[BlockPool, int]]) -> None:
        for pool, block_id in reversed(users):
            pool.release(block_id)

    def _stop_growing(self, table: BlockTable) -> None:
        for key in table.growing:
            del self._growing[key]
        table.growing.clear()
