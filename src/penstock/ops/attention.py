"""Paged attention and the cache it reads."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from penstock.ops.contract import Array, op
from penstock.ops.rounding import round_to

SPLIT_TOKENS: Final = (
    512  # counted from position 0: the probabilities are rounded relative to a split's maximum
)


@dataclass(frozen=True, slots=True)
class KVBlocks:
    """One layer's keys and values as the references hold them: X blocks of P tokens, C values each.

    Latents are keys whose first dims are the values: then `values` is a view of `keys`.
    """

    keys: Array  # [X,P,C] float32
    values: Array  # [X,P,C], of latents [X,P,latent_dim]

    @property
    def block_size(self) -> int:
        return int(self.keys.shape[1])


@op(
    dims="k[T,C], v[T,C]?, kv, slots[T]:S, row_request[T]:B, block_table[B,M]:X -> kv",
    tolerance={"float32": 0.0, "bfloat16": 0.0},
    flops=lambda _: 0,
    traffic=lambda d, w: 2 * d["T"] * d["C"] * (4 + w.get("kv", 4)),
    mutates=("kv",),
)
def kv_write(
    k: Array, v: Array | None, kv: KVBlocks, slots: Array, row_request: Array, block_table: Array
) -> KVBlocks:
    """Put every row's key and value where its request's block table says; returns `kv`, written in place.

    A slot is the row's position, but for drafts of a tree, which lie one after the other. Latents have no
    values of their own.
    """
    block_ids = block_table[row_request, slots // kv.block_size]
    kv.keys[block_ids, slots % kv.block_size] = k
    if v is not None:
        kv.values[block_ids, slots % kv.block_size] = v
    return kv


@op(
    dims=(
        "q[T,Q], kv, positions[T]:S, row_request[T]:B, block_table[B,M]:X, path[T,J]:S?,"
        " context_len[B]:S?, sinks[h]?, slopes[h]? -> y[T,O]"
    ),
    tolerance={"float32": 1e-5, "bfloat16": 2**-7},
    flops=lambda d: 2 * d["T"] * d["S"] * (d["Q"] + d["O"]),
    traffic=lambda d, w: 4 * d["T"] * (d["Q"] + d["O"]) + d["B"] * d["S"] * d["E"] * w.get("kv", 4),
)
def attention(
    q: Array,
    kv: KVBlocks,
    positions: Array,
    row_request: Array,
    block_table: Array,
    path: Array | None,
    context_len: Array | None,
    sinks: Array | None,
    slopes: Array | None,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    latent_dim: int = 0,
    scale: float,
    window: int | None,
    softcap: float | None,
    to: str,
) -> Array:
    """Each row over its request's positions 0..p (the last `window` of them, if there is one).

        y = softmax(q k^T * scale) v, one key head for num_heads / num_kv_heads query heads

    Values are as wide as keys; with `latent_dim` they are the first `latent_dim` dims of the keys.

    `path`: the slots of the last J positions that a row reads, its own last; without it, a key lies at its
    position. With `context_len` attention goes both ways: over all positions of the request, those nearer
    than `window`; the whole request is in the step. `sinks`: one more score per head, which takes its part
    of the softmax and has no value. `slopes`: a score gains -slope * distance (ALiBi; Press et al. 2021,
    arXiv:2108.12409).

    In splits of 512 tokens: probabilities are taken relative to the split's maximum, rounded by `to`,
    and summed as rounded, so that the weights used sum to one. Splits are merged in ascending order.
    """
    value_dim = latent_dim or head_dim
    y = np.empty((len(q), num_heads * value_dim), np.float32)
    for t, position in enumerate(positions):
        first = 0 if window is None else max(0, int(position) - window + 1)
        end = int(position) + 1
        if context_len is not None:
            whole = int(context_len[row_request[t]])
            end = whole if window is None else min(whole, int(position) + window)
        blocks = block_table[row_request[t]]
        query = q[t].reshape(num_kv_heads, num_heads // num_kv_heads, head_dim)
        total, peak, out = _row_start(query, value_dim)
        for begin in range(first // SPLIT_TOKENS * SPLIT_TOKENS, end, SPLIT_TOKENS):
            tokens = np.arange(max(begin, first), min(begin + SPLIT_TOKENS, end))
            slots = tokens if path is None else _slots(tokens, int(position), path[t])
            place = blocks[slots // kv.block_size], slots % kv.block_size
            keys = kv.keys[place].reshape(-1, num_kv_heads, 1, head_dim)
            values = kv.values[place].reshape(-1, num_kv_heads, 1, value_dim)
            scores = (keys * query).sum(axis=-1) * np.float32(scale)
            if softcap is not None:
                scores = np.float32(softcap) * np.tanh(scores / np.float32(softcap))
            if slopes is not None:
                distance = np.abs(tokens - position).astype(np.float32)
                scores = scores - slopes.reshape(query.shape[:2]) * distance[:, None, None]
            split_peak = scores.max(axis=0)
            p = round_to(np.exp(scores - split_peak), to=to)
            new_peak = np.maximum(peak, split_peak)
            keep, join = np.exp(peak - new_peak), np.exp(split_peak - new_peak)
            total = total * keep + p.sum(axis=0) * join
            out = out * keep[..., None] + (p[..., None] * values).sum(axis=0) * join[..., None]
            peak = new_peak
        if sinks is not None:
            sink = sinks.reshape(query.shape[:2])
            new_peak = np.maximum(peak, sink)
            keep = np.exp(peak - new_peak)
            total, out = total * keep + np.exp(sink - new_peak), out * keep[..., None]
        y[t] = (out / total[..., None]).ravel()
    return y


def _slots(tokens: Array, position: int, path: Array) -> Array:
    """Where the keys of `tokens` lie for the row at `position`."""
    from_end = position - tokens
    is_near = (from_end >= 0) & (from_end < len(path))
    return np.where(is_near, path[np.where(is_near, len(path) - 1 - from_end, 0)], tokens)


def _row_start(query: Array, value_dim: int) -> tuple[Array, Array, Array]:
    """Sum, maximum and weighted values of no token at all."""
    total = np.zeros(query.shape[:2], np.float32)
    out = np.zeros((*query.shape[:2], value_dim), np.float32)
    return total, np.full_like(total, -np.inf), out
