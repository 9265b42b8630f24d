"""Rotary positions, alone and fused with everything between the qkv product and the cache."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from penstock.ops.attention import KVBlocks, kv_write
from penstock.ops.contract import Array, op
from penstock.ops.heads import join_heads
from penstock.ops.norm import head_norm
from penstock.ops.norm import norm as normed
from penstock.ops.pointwise import join
from penstock.ops.rounding import round_to


@op(
    dims="x[T,Q], positions[T]:S, cos[S,r2], sin[S,r2] -> y[T,Q]",
    tolerance={"float32": 1e-6},
    flops=lambda d: 3 * d["T"] * d["Q"],
    traffic=lambda d, _: 8 * d["T"] * (d["Q"] + d["r2"]),
)
def rope(
    x: Array, positions: Array, cos: Array, sin: Array, *, head_dim: int, interleaved: bool = False
) -> Array:
    """Turn the pairs (i, i + r2) of every head by the angles of the row's position; dims past 2*r2 stay.

    `cos` and `sin` hold one row per position. Su et al. 2021, arXiv:2104.09864, pairs (2i, 2i + 1), which is
    `interleaved`; most checkpoints pair halves.
    """
    y = x.reshape(len(x), -1, head_dim).copy()
    half = cos.shape[1]
    even, odd = (
        (slice(0, 2 * half, 2), slice(1, 2 * half, 2))
        if interleaved
        else (slice(half), slice(half, 2 * half))
    )
    low, high = y[..., even].copy(), y[..., odd].copy()
    c, s = cos[positions][:, None, :], sin[positions][:, None, :]
    y[..., even] = low * c - high * s
    y[..., odd] = high * c + low * s
    return y.reshape(x.shape)


@op(
    dims=(
        "qkv[T,Q+2C], q_norm[W]?, k_norm[Y]?, positions[T]:S, slots[T]:S, cos[S,r2]?, sin[S,r2]?, kv,"
        " block_table[B,M]:X, row_request[T]:B -> q[T,Q]"
    ),
    tolerance={"float32": 1e-5, "bfloat16": 2**-7},
    flops=lambda d: 8 * d["T"] * (d["Q"] + d["C"]),
    traffic=lambda d, w: (
        d["T"]
        * (4 * (d["Q"] + 2 * d["C"]) + d["Q"] * w.get("q", 4) + 2 * d["C"] * w.get("kv", 4) + 8 * d["r2"])
    ),
    mutates=("kv",),
)
def split_rope_write(
    qkv: Array,
    q_norm: Array | None,
    k_norm: Array | None,
    positions: Array,
    slots: Array,
    cos: Array | None,
    sin: Array | None,
    kv: KVBlocks,
    block_table: Array,
    row_request: Array,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    norm_row: bool,
    norm: Mapping[str, Any],
    interleaved: bool,
    to: str,
    kv_to: str,
) -> Array:
    """q, k, v out of one row; optional norms and rope on q and k; rounded; k and v into the cache.

    `norm` holds the attributes of the norms, which are of each head or, with `norm_row`, of all at once.
    """
    width, kv_width = num_heads * head_dim, num_kv_heads * head_dim
    q, k, v = np.split(qkv, [width, width + kv_width], axis=1)
    if q_norm is not None:
        q = head_norm(q, q_norm, span=width if norm_row else head_dim, **norm)
    if k_norm is not None:
        k = head_norm(k, k_norm, span=kv_width if norm_row else head_dim, **norm)
    if cos is not None and sin is not None:
        q = rope(q, positions, cos, sin, head_dim=head_dim, interleaved=interleaved)
        k = rope(k, positions, cos, sin, head_dim=head_dim, interleaved=interleaved)
    k, v = (round_to(x, to=kv_to, head_dim=head_dim) for x in (k, v))
    kv_write(k, v, kv, slots, row_request, block_table)
    return np.asarray(round_to(q, to=to))


@op(
    dims=(
        "latent[T,C], q_latent[T,A], q_rope[T,Z], weight[W], positions[T]:S, slots[T]:S, cos[S,r2],"
        " sin[S,r2], kv, block_table[B,M]:X, row_request[T]:B -> q[T,A+Z]"
    ),
    tolerance={"float32": 1e-5, "bfloat16": 2**-7},
    flops=lambda d: 8 * d["T"] * (d["A"] + d["Z"] + d["C"]),
    traffic=lambda d, w: (
        d["T"]
        * (
            4 * (d["C"] + d["A"] + d["Z"])
            + (d["A"] + d["Z"]) * w.get("q", 4)
            + d["C"] * w.get("kv", 4)
            + 8 * d["r2"]
        )
    ),
    mutates=("kv",),
)
def latent_rope_write(
    latent: Array,
    q_latent: Array,
    q_rope: Array,
    weight: Array,
    positions: Array,
    slots: Array,
    cos: Array,
    sin: Array,
    kv: KVBlocks,
    block_table: Array,
    row_request: Array,
    *,
    num_heads: int,
    head_dim: int,
    latent_dim: int,
    norm: Mapping[str, Any],
    interleaved: bool,
    to: str,
    kv_to: str,
) -> Array:
    """Queries of latent attention out of their two halves; the latent, normed, and the key beside it cached.

    The key's half of `latent` and the second halves of the queries turn, whole.
    """
    rope_dim = head_dim - latent_dim
    turned = {"head_dim": rope_dim, "interleaved": interleaved}
    low, key = np.split(latent, [latent_dim], axis=1)
    k = join(normed(low, weight, None, **norm), rope(key, positions, cos, sin, **turned))
    kv_write(round_to(k, to=kv_to, head_dim=head_dim), None, kv, slots, row_request, block_table)
    q = join_heads(q_latent, rope(q_rope, positions, cos, sin, **turned), num_heads=num_heads)
    return np.asarray(round_to(q, to=to))
