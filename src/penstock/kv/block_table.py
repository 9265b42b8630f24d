"""One request's blocks, place by place, in every KV group. A record: it hands out and takes back nothing."""

from collections.abc import Sequence

from penstock.kv.block_pool import NULL_BLOCK
from penstock.kv.retention import HeldBlock

BlockIds = tuple[tuple[int, ...], ...]  # per KV group, per place


class BlockTable:
    """Begins with the blocks of a prefix hit. `held[g]`: the places of group g still there, ascending."""

    __slots__ = ("_frozen", "block_ids", "growing", "held", "num_committed", "num_places")

    def __init__(self, block_ids: BlockIds) -> None:
        self.block_ids = [list(ids) for ids in block_ids]
        self.held = [[HeldBlock(p) for p, b in enumerate(ids) if b != NULL_BLOCK] for ids in block_ids]
        self.num_places = len(block_ids[0])
        self.num_committed = self.num_places  # full, offered to the prefix index, old ones let go
        self.growing: list[bytes] = []  # keys of the links that the request computes in this step
        self._frozen: BlockIds | None = None

    def frozen(self) -> BlockIds:
        """The ids as tuples; the same object until something changes."""
        if self._frozen is None:
            self._frozen = tuple(tuple(ids) for ids in self.block_ids)
        return self._frozen

    def extend(self, new: Sequence[Sequence[int]]) -> None:
        """As many new places in every group; the null block where a place has none."""
        num_places = self.num_places + len(new[0])
        for ids, held, more in zip(self.block_ids, self.held, new, strict=True):
            ids.extend(more)
            held.extend(HeldBlock(p) for p in range(self.num_places, num_places) if ids[p] != NULL_BLOCK)
            assert len(ids) == num_places, "groups grow together"
        self.num_places = num_places
        self._frozen = None

    def held_before(self, g: int, place: int) -> list[HeldBlock]:
        """Held blocks of group `g` at places below `place`, which is among the newest that are all held."""
        return self.held[g][: len(self.held[g]) - (self.num_places - place)]

    def let_go(self, g: int, places: Sequence[int]) -> list[int]:
        """Put the null block in these places; the ids that were there."""
        ids, gone = self.block_ids[g], set(places)
        let_go = [ids[place] for place in places]
        for place in places:
            ids[place] = NULL_BLOCK
        self.held[g] = [block for block in self.held[g] if block.place not in gone]
        self._frozen = None
        return let_go
