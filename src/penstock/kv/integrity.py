"""Whether pools, prefix index and block tables tell the same story. For tests and after failures."""

from collections import Counter
from collections.abc import Mapping, Sequence

from penstock.kv.block_pool import NULL_BLOCK, BlockPool
from penstock.kv.block_table import BlockTable
from penstock.kv.prefix_index import Link, PrefixIndex, is_same


def find_fault(
    group: int,
    pool: BlockPool,
    index: PrefixIndex,
    tables: Mapping[str, BlockTable],
    links: Mapping[str, Sequence[Link]],
) -> str | None:
    """A broken invariant of one KV group in words, or None. O(blocks + places)."""
    fault = pool.find_fault()
    if fault is not None:
        return fault
    users = Counter(b for table in tables.values() for b in table.block_ids[group] if b != NULL_BLOCK)
    for block_id in range(1, pool.num_blocks):
        if pool.num_users(block_id) != users[block_id]:
            return (
                f"block {block_id} counts {pool.num_users(block_id)} users; {users[block_id]} tables hold it"
            )
        if pool.is_cached(block_id) != (index.find_link(block_id) is not None):
            return f"block {block_id} is cached in the pool or in the index, not in both"
    for request_id, table in tables.items():
        ids = table.block_ids[group]
        if len(ids) != table.num_places:
            return f"{request_id} has {len(ids)} places in this group and {table.num_places} in all"
        if [block.place for block in table.held[group]] != [p for p, b in enumerate(ids) if b != NULL_BLOCK]:
            return f"{request_id} does not know which of its blocks are left"
        known = links.get(request_id, ())
        for place, block_id in enumerate(ids):
            link = index.find_link(block_id)
            if link is None:
                continue
            if place >= table.num_committed:
                return f"{request_id} still writes block {block_id}, which others may read"
            if place < len(known) and not is_same(link, known[place]):
                return f"{request_id} reads block {block_id}, which holds other tokens"
    return None
