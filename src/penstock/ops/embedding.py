"""Look-ups: rows of the embedding table, rows of the step."""

import numpy as np

from penstock.ops.contract import Array, op


@op(
    dims="tokens[T]:V, weight[V,H] -> y[T,H]",
    tolerance={"float32": 0.0},
    flops=lambda _: 0,
    traffic=lambda d, w: d["T"] * d["H"] * (w.get("weight", 4) + 4),
)
def embed(tokens: Array, weight: Array) -> Array:
    """The table's row of every token, widened to float32."""
    return weight[tokens].astype(np.float32)


@op(
    dims="x[T,H], rows[R]:T -> y[R,H]",
    tolerance={"float32": 0.0},
    flops=lambda _: 0,
    traffic=lambda d, _: 8 * d["R"] * d["H"],
)
def take_rows(x: Array, rows: Array) -> Array:
    """y[r] = x[rows[r]]: the rows that need logits."""
    return x[rows]
