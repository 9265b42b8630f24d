"""Norms: of a row, of each head of a row, into the residual stream, fused with the rounding to an operand."""

import numpy as np

from penstock.ops.contract import Array, op
from penstock.ops.embedding import take_rows
from penstock.ops.rounding import operand


@op(
    dims="x[T,H], weight[H]?, bias[H]? -> y[T,H]",
    tolerance={"float32": 1e-5, "bfloat16": 2**-7},  # sums in any order; one rounding is 2**-8
    flops=lambda d: 4 * d["T"] * d["H"],
)
def norm(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    *,
    eps: float,
    weight_offset: float = 0.0,
    kind: str = "rms",
) -> Array:
    """Scale every row to unit root mean square, then by a learned weight; `layer` takes the mean away first.

        y = x / sqrt(mean(x**2) + eps) * (weight + weight_offset) + bias

    `weight_offset` is 1.0 where the checkpoint stores `weight - 1`. Zhang & Sennrich 2019, arXiv:1910.07467;
    Ba et al. 2016, arXiv:1607.06450.
    """
    if kind == "layer":
        x = x - x.mean(axis=-1, keepdims=True, dtype=np.float32)
    mean_square = np.square(x).mean(axis=-1, keepdims=True, dtype=np.float32)
    y: Array = x * (np.float32(1) / np.sqrt(mean_square + np.float32(eps)))
    if weight is not None:
        y = y * (weight + np.float32(weight_offset))
    return y if bias is None else y + bias


@op(
    dims="x[T,Q], weight[W] -> y[T,Q]",
    tolerance={"float32": 1e-5, "bfloat16": 2**-7},
    flops=lambda d: 4 * d["T"] * d["Q"],
)
def head_norm(
    x: Array, weight: Array, *, span: int, eps: float, weight_offset: float = 0.0, kind: str = "rms"
) -> Array:
    """`norm` of every `span` values of every row: of each head, or of all heads at once (qk-norm).

    The weight is as wide as a span and the same for all, or as wide as the row.
    """
    spans = norm(x.reshape(-1, span), None, None, eps=eps, kind=kind).reshape(x.shape)
    y: Array = spans * np.tile(weight + np.float32(weight_offset), x.shape[1] // len(weight))
    return y


@op(
    dims="x[T,H], weight[H]?, bias[H]?, residual[T,H] -> y[T,H]",
    tolerance={"float32": 1e-5},
    flops=lambda d: 5 * d["T"] * d["H"],
)
def norm_add(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    residual: Array,
    *,
    eps: float,
    weight_offset: float,
    kind: str,
) -> Array:
    """residual + norm(x): where a layer norms its outputs."""
    y: Array = residual + norm(x, weight, bias, eps=eps, weight_offset=weight_offset, kind=kind)
    return y


@op(
    dims="x[T,H], weight[H]?, bias[H]? -> y[T,H]",
    tolerance={"float32": 1e-5, "bfloat16": 2**-7, "int8": 2**-6},  # a code may move by one of 127
    flops=lambda d: 5 * d["T"] * d["H"],
)
def norm_operand(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    *,
    eps: float,
    weight_offset: float,
    kind: str,
    to: str,
) -> Array:
    """operand(norm(x, weight, bias))."""
    y: Array = operand(norm(x, weight, bias, eps=eps, weight_offset=weight_offset, kind=kind), to=to)
    return y


@op(
    dims="x[T,H], rows[R]:T, weight[H]?, bias[H]? -> y[R,H]",
    tolerance={"float32": 1e-5, "bfloat16": 2**-7, "int8": 2**-6},
    flops=lambda d: 5 * d["R"] * d["H"],
    traffic=lambda d, w: d["R"] * d["H"] * (w.get("x", 4) + w.get("y", 4)) + 4 * d["H"],
)
def rows_norm_operand(
    x: Array,
    rows: Array,
    weight: Array | None,
    bias: Array | None,
    *,
    eps: float,
    weight_offset: float,
    kind: str,
    to: str,
) -> Array:
    """norm_operand(take_rows(x, rows), weight, bias): the final norm, of the rows that need logits."""
    attrs = {"eps": eps, "weight_offset": weight_offset, "kind": kind, "to": to}
    y: Array = norm_operand(take_rows(x, rows), weight, bias, **attrs)
    return y
