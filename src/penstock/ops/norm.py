"""RMS norms: of a row, of each head of a row, and fused with the rounding to an operand."""

import numpy as np

from penstock.ops.contract import Array, op
from penstock.ops.embedding import take_rows
from penstock.ops.rounding import operand


@op(
    dims="x[T,H], weight[H] -> y[T,H]",
    tolerance={"float32": 1e-5, "bfloat16": 2**-7},  # sums in any order; one rounding is 2**-8
    flops=lambda d: 4 * d["T"] * d["H"],
)
def rms_norm(x: Array, weight: Array, *, eps: float, weight_offset: float = 0.0) -> Array:
    """Scale every row to unit root mean square, then by a learned weight.

        y = x / sqrt(mean(x**2) + eps) * (weight + weight_offset)

    `weight_offset` is 1.0 where the checkpoint stores `weight - 1`. Zhang & Sennrich 2019, arXiv:1910.07467.
    """
    mean_square = np.square(x).mean(axis=-1, keepdims=True, dtype=np.float32)
    inverse_rms = np.float32(1) / np.sqrt(mean_square + np.float32(eps))
    y: Array = x * inverse_rms * (weight + np.float32(weight_offset))
    return y


@op(
    dims="x[T,Q], weight[D] -> y[T,Q]",
    tolerance={"float32": 1e-5, "bfloat16": 2**-7},
    flops=lambda d: 4 * d["T"] * d["Q"],
)
def head_norm(x: Array, weight: Array, *, head_dim: int, eps: float, weight_offset: float = 0.0) -> Array:
    """`rms_norm` of every head of every row, all heads by the same weight (qk-norm)."""
    heads = x.reshape(-1, head_dim)
    y: Array = rms_norm(heads, weight, eps=eps, weight_offset=weight_offset)
    return y.reshape(x.shape)


@op(
    dims="x[T,H], weight[H] -> y[T,H]",
    tolerance={"float32": 1e-5, "bfloat16": 2**-7, "int8": 2**-6},  # a code may move by one of 127
    flops=lambda d: 5 * d["T"] * d["H"],
)
def norm_operand(x: Array, weight: Array, *, eps: float, weight_offset: float, to: str) -> Array:
    """operand(rms_norm(x, weight))."""
    y: Array = operand(rms_norm(x, weight, eps=eps, weight_offset=weight_offset), to=to)
    return y


@op(
    dims="x[T,H], rows[R]:T, weight[H] -> y[R,H]",
    tolerance={"float32": 1e-5, "bfloat16": 2**-7, "int8": 2**-6},
    flops=lambda d: 5 * d["R"] * d["H"],
    traffic=lambda d, w: d["R"] * d["H"] * (w.get("x", 4) + w.get("y", 4)) + 4 * d["H"],
)
def rows_norm_operand(
    x: Array, rows: Array, weight: Array, *, eps: float, weight_offset: float, to: str
) -> Array:
    """norm_operand(take_rows(x, rows), weight): the final norm, of the rows that need logits."""
    y: Array = norm_operand(take_rows(x, rows), weight, eps=eps, weight_offset=weight_offset, to=to)
    return y
