"""Look-ups: rows of the embedding table, rows of the step."""

import numpy as np

from penstock.ops.contract import Array, op


@op(
    dims="tokens[T]:V, weight[V,H], positions[T]:S, position_weight[U,H]? -> y[T,H]",
    tolerance={"float32": 0.0},
    flops=lambda d: 2 * d["T"] * d["H"],
    traffic=lambda d, w: d["T"] * d["H"] * (w.get("weight", 4) + w.get("position_weight", 4) + 4),
)
def embed(
    tokens: Array,
    weight: Array,
    positions: Array,
    position_weight: Array | None,
    *,
    scale: float = 1.0,
    position_offset: int = 0,
) -> Array:
    """The table's row of every token, widened to float32, times `scale`; learned positions added."""
    y = weight[tokens].astype(np.float32) * np.float32(scale)
    if position_weight is None:
        return y
    return np.asarray(y + position_weight[positions + position_offset].astype(np.float32))


@op(
    dims="positions[T]:S, weight[U,H] -> y[T,H]",
    tolerance={"float32": 0.0},
    flops=lambda _: 0,
    traffic=lambda d, w: d["T"] * d["H"] * (w.get("weight", 4) + 4),
)
def embed_positions(positions: Array, weight: Array, *, offset: int = 0) -> Array:
    """The learned position of every row, widened to float32, alone: where tokens are projected first."""
    return np.asarray(weight[positions + offset].astype(np.float32))


@op(
    dims="x[T,H], rows[R]:T -> y[R,H]",
    tolerance={"float32": 0.0},
    flops=lambda _: 0,
    traffic=lambda d, _: 8 * d["R"] * d["H"],
)
def take_rows(x: Array, rows: Array) -> Array:
    """y[r] = x[rows[r]]: the rows that need logits."""
    return x[rows]
