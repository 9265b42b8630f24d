"""KV groups: layers that keep the same, what a block of them costs, how memory is split among them.

The planner asks for the split, the manager keeps one pool per group. Pure arithmetic.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.errors import OutOfMemoryError
from penstock.kv.retention import RETENTIONS, Retention, exact_for
from penstock.model.spec import KVGroupSpec

CHECKPOINTS_PER_REQUEST = 6  # of states: beginnings that others may go on from, kept while memory lasts
CHECKPOINT_BYTES_PER_TOKEN = 64 << 10  # about what keys and values take in a model of the same size


@dataclass(frozen=True, slots=True)
class KVGroup:
    """A block id of this group names `block_size` tokens in every layer of it, or the state after them."""

    layers: tuple[int, ...]
    window: int | None
    retention: str  # a name from RETENTIONS
    bytes_per_block: int  # over all its layers

    def rule(self) -> Retention:
        return RETENTIONS[self.retention](self.window)


def make_groups(specs: Sequence[KVGroupSpec], layer_block_bytes: Sequence[int]) -> tuple[KVGroup, ...]:
    """Groups of a model whose layer `i` takes `layer_block_bytes[i]` bytes in each block.

    The backend states those bytes: they hold its dtype and its padding of heads.
    """
    return tuple(
        KVGroup(
            layers=spec.layers,
            window=spec.window,
            retention=exact_for(spec),
            bytes_per_block=sum(layer_block_bytes[layer] for layer in spec.layers),
        )
        for spec in specs
    )


def checkpoint_blocks(groups: Sequence[KVGroup], block_size: int) -> int:
    """Every how many blocks of a text its state is kept for others: so that it costs what keys would."""
    state_bytes = max((g.bytes_per_block for g in groups if not g.rule().fills_every_place), default=0)
    return max(1, -(-state_bytes // (CHECKPOINT_BYTES_PER_TOKEN * block_size)))


def split_blocks(
    groups: Sequence[KVGroup],
    *,
    memory_bytes: int,
    max_context: int,
    max_requests: int,
    max_step_tokens: int,
    block_size: int,
) -> tuple[int, ...]:
    """Blocks per group, null blocks included, so that all run out at about the same number of requests.

    Never more than `max_requests` requests of `max_context` tokens need, and their checkpoints, which are
    the first that memory is too small for. OutOfMemoryError if not even one request of `max_context`
    tokens fits in `memory_bytes`.
    """
    needs = [
        g.rule().peak_blocks(max_context, step_tokens=max_step_tokens, block_size=block_size) for g in groups
    ]
    null_bytes = sum(g.bytes_per_block for g in groups)
    spare_bytes = memory_bytes - null_bytes
    if spare_bytes < _bytes_of(groups, needs):
        raise OutOfMemoryError(
            f"{_what(groups)} of one request of {max_context:,} tokens take "
            f"{null_bytes + _bytes_of(groups, needs):,} bytes; {memory_bytes:,} are planned for them. "
            f"Lower max_context or raise memory_bytes."
        )
    whole = -(-max_context // block_size)
    wants = [
        need if g.rule().fills_every_place else min(whole + 1, need + CHECKPOINTS_PER_REQUEST)
        for need, g in zip(needs, groups, strict=True)
    ]
    if spare_bytes < _bytes_of(groups, wants):
        wants = needs
    request_bytes = _bytes_of(groups, wants)
    return tuple(1 + min(max_requests * want, spare_bytes * want // request_bytes) for want in wants)


def most_requests(
    specs: Sequence[KVGroupSpec], num_blocks: Sequence[int], *, num_tokens: int, block_size: int
) -> int:
    """How many requests of `num_tokens` can be held at once."""
    rules = [RETENTIONS[exact_for(spec)](spec.window) for spec in specs]
    needs = [rule.peak_blocks(num_tokens, step_tokens=1, block_size=block_size) for rule in rules]
    return min((count - 1) // max(1, need) for count, need in zip(num_blocks, needs, strict=True))


def total_bytes(groups: Sequence[KVGroup], num_blocks: Sequence[int]) -> int:
    return _bytes_of(groups, num_blocks)


def _bytes_of(groups: Sequence[KVGroup], num_blocks: Sequence[int]) -> int:
    return sum(g.bytes_per_block * n for g, n in zip(groups, num_blocks, strict=True))


def _what(groups: Sequence[KVGroup]) -> str:
    kinds = {g.rule().fills_every_place for g in groups}
    names = {True: "keys and values", False: "states"}
    return " and ".join(name for kind, name in names.items() if kind in kinds)
