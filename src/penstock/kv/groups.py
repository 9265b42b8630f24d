"""KV groups: layers that keep the same tokens, what a block of them costs, how memory is split among them.

The planner asks for the split, the manager keeps one pool per group. Pure arithmetic.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.errors import OutOfMemoryError
from penstock.kv.retention import exact_for
from penstock.model.spec import KVGroupSpec


@dataclass(frozen=True, slots=True)
class KVGroup:
    """A block id of this group names `block_size` tokens in every layer of it."""

    layers: tuple[int, ...]
    window: int | None
    retention: str  # a name from RETENTIONS
    bytes_per_block: int  # over all its layers


def make_groups(
    specs: Sequence[KVGroupSpec], layer_token_bytes: Sequence[int], *, block_size: int
) -> tuple[KVGroup, ...]:
    """Groups of a model whose layer `i` stores `layer_token_bytes[i]` bytes of keys and values per token.

    The backend states those bytes: they hold its dtype and its padding of heads.
    """
    return tuple(
        KVGroup(
            layers=spec.layers,
            window=spec.window,
            retention=exact_for(spec.window),
            bytes_per_block=block_size * sum(layer_token_bytes[layer] for layer in spec.layers),
        )
        for spec in specs
    )


def peak_blocks(window: int | None, num_tokens: int, *, step_tokens: int, block_size: int) -> int:
    """Most blocks of one group that a request of `num_tokens` holds at once, in steps of `step_tokens`.

    Without a window all of them. With one: what the window can touch from a block's beginning, the block
    before it at least (the latest is never dropped), and what one step writes.
    """
    whole = -(-num_tokens // block_size)
    if window is None:
        return whole
    behind = max(1, -(-(window - 1) // block_size))
    return min(whole, behind + -(-step_tokens // block_size) + (step_tokens > 1))


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

    Never more than `max_requests` requests of `max_context` tokens need. OutOfMemoryError if not even one
    request of `max_context` tokens fits in `memory_bytes`.
    """
    needs = [
        peak_blocks(g.window, max_context, step_tokens=max_step_tokens, block_size=block_size) for g in groups
    ]
    null_bytes = sum(g.bytes_per_block for g in groups)
    request_bytes = sum(need * g.bytes_per_block for need, g in zip(needs, groups, strict=True))
    if memory_bytes < null_bytes + request_bytes:
        raise OutOfMemoryError(
            f"keys and values of one request of {max_context:,} tokens take {null_bytes + request_bytes:,} "
            f"bytes; {memory_bytes:,} are planned for them. Lower max_context or raise memory_bytes."
        )
    spare_bytes = memory_bytes - null_bytes
    return tuple(1 + min(max_requests * need, spare_bytes * need // request_bytes) for need in needs)


def total_bytes(groups: Sequence[KVGroup], num_blocks: Sequence[int]) -> int:
    return sum(g.bytes_per_block * n for g, n in zip(groups, num_blocks, strict=True))
