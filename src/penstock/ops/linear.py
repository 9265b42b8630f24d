"""Matrix products with weights, and their epilogues."""

import numpy as np

from penstock.ops.contract import Array, op

# Of the row's largest output. int8: activations are coded before this op, so only sums differ.
_TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-5, "int8": 1e-5}


@op(
    dims="x[T,K], weight[N,K], bias[N]? -> y[T,N]",
    tolerance=_TOLERANCE,
    flops=lambda d: 2 * d["T"] * d["N"] * d["K"],
)
def linear(x: Array, weight: Array, bias: Array | None = None, *, scale: float = 1.0) -> Array:
    """y[t] = (weight @ x[t] + bias) * scale.

    `weight` is what its format unpacks to; only kernels see packed weights.

    One row at a time and without BLAS, which runs other code, with other rounding, for one row than
    for many. Obviously right comes first here; fast is what kernels are for.
    """
    y = np.empty((len(x), len(weight)), np.float32)
    for t, row in enumerate(x):
        y[t] = (weight * row).sum(axis=1)
    if bias is not None:
        y = y + bias
    return y * np.float32(scale)


@op(
    dims="x[T,K], weight[N,K], bias[N]?, residual[T,N] -> y[T,N]",
    tolerance=_TOLERANCE,
    flops=lambda d: d["T"] * d["N"] * (2 * d["K"] + 1),
)
def linear_add(x: Array, weight: Array, bias: Array | None, residual: Array, *, scale: float = 1.0) -> Array:
    """residual + linear(x, weight, bias)."""
    return np.asarray(residual + linear(x, weight, bias, scale=scale))
