"""What happens in each head for itself: products with a matrix of its own, operands, rows side by side.

Latent attention goes from its heads to its latents and back with these.
"""

import numpy as np

from penstock.ops.contract import Array, op
from penstock.ops.linear import linear
from penstock.ops.rounding import operand


@op(
    dims="x[T,K] -> y[T,K]",
    tolerance={"float32": 0.0, "bfloat16": 0.0, "int8": 0.0},
    flops=lambda d: d["T"] * d["K"],
)
def heads_operand(x: Array, *, num_heads: int, to: str) -> Array:
    """operand(x) of each head for itself: int8 codes of one head share no scale with another's."""
    return np.asarray(operand(x.reshape(len(x) * num_heads, -1), to=to).reshape(x.shape))


@op(
    dims="x[T,A], weight[N,K] -> y[T,N]",
    tolerance={"float32": 1e-5, "bfloat16": 1e-5, "int8": 1e-5},
    flops=lambda d: 2 * d["T"] * d["N"] * d["K"],
)
def heads_linear(x: Array, weight: Array, *, num_heads: int) -> Array:
    """linear() of each head with its own matrix: those of all heads lie under each other in `weight`."""
    rows, width = len(weight) // num_heads, weight.shape[1]
    parts = [
        linear(x[:, head * width : (head + 1) * width], weight[head * rows : (head + 1) * rows])
        for head in range(num_heads)
    ]
    return np.concatenate(parts, axis=1)


@op(
    dims="x[T,A], y[T,W] -> z[T,A+W]",
    tolerance={"float32": 0.0},
    flops=lambda _: 0,
)
def join_heads(x: Array, y: Array, *, num_heads: int) -> Array:
    """Head by head, those of x and of y side by side."""
    parts = [part.reshape(len(part), num_heads, -1) for part in (x, y)]
    return np.concatenate(parts, axis=2).reshape(len(x), -1)
