"""Elementwise ops: the residual sum, the activations of an MLP, gated or plain, and the cap of logits."""

import math
from collections.abc import Callable, Mapping

import numpy as np

from penstock.ops.contract import Array, op
from penstock.ops.rounding import operand


def _silu(x: Array) -> Array:
    with np.errstate(over="ignore"):  # exp(-x) is inf where x is very negative: x / inf is the right -0
        return np.asarray(x / (np.float32(1) + np.exp(-x)))


def _gelu(x: Array) -> Array:
    erf = np.array([math.erf(v) for v in (x / np.float32(math.sqrt(2))).ravel().tolist()], np.float32)
    return np.asarray(np.float32(0.5) * x * (np.float32(1) + erf.reshape(x.shape)))


def _gelu_tanh(x: Array) -> Array:
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
    return np.asarray(np.float32(0.5) * x * (np.float32(1) + np.tanh(inner)))


def _quick_gelu(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(x / (np.float32(1) + np.exp(np.float32(-1.702) * x)))


def _relu(x: Array) -> Array:
    return np.maximum(x, np.float32(0))


def _relu2(x: Array) -> Array:
    return np.square(_relu(x))


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "quick_gelu": _quick_gelu,
    "relu": _relu,
    "relu2": _relu2,
}


def _clamped_swiglu(gate: Array, up: Array) -> Array:
    limit = np.float32(7)
    return _quick_gelu(np.minimum(gate, limit)) * (np.clip(up, -limit, limit) + np.float32(1))


# Ways to gate that are no act(gate) * up.
GATES: Mapping[str, Callable[[Array, Array], Array]] = {"clamped_swiglu": _clamped_swiglu}


@op(
    dims="x[T,H], y[T,H] -> z[T,H]",
    tolerance={"float32": 0.0},
    flops=lambda d: d["T"] * d["H"],
)
def add(x: Array, y: Array) -> Array:
    """x + y: the residual stream, float32."""
    return np.asarray(x + y)


@op(
    dims="x[T,H], y[T,H], gate[T,O] -> z[T,H]",
    tolerance={"float32": 1e-5},
    flops=lambda d: 2 * d["T"] * d["H"],
)
def add_gated(x: Array, y: Array, gate: Array) -> Array:
    """x + sigmoid(gate) * y: one value of `gate` for each row, its first. Kernels round once."""
    with np.errstate(over="ignore"):
        weight = np.float32(1) / (np.float32(1) + np.exp(-gate[:, :1]))
    return np.asarray(x + weight * y)


@op(
    dims="x[T,A], y[T,W] -> z[T,A+W]",
    tolerance={"float32": 0.0},
    flops=lambda _: 0,
)
def join(x: Array, y: Array) -> Array:
    """Rows of x and y side by side."""
    return np.concatenate([x, y], axis=1)


@op(
    dims="gate[T,F], up[T,F] -> y[T,F]",
    tolerance={"float32": 1e-5},
    flops=lambda d: 5 * d["T"] * d["F"],
)
def gated(gate: Array, up: Array, *, act: str) -> Array:
    """act(gate) * up. Shazeer 2020, arXiv:2002.05202.

    clamped_swiglu: quick_gelu(min(gate, 7)) * (1 + up), up within -7 .. 7 (gpt-oss, arXiv:2508.10925).
    """
    return GATES[act](gate, up) if act in GATES else ACTIVATIONS[act](gate) * up


@op(
    dims="gate_up[T,2F] -> y[T,F]",
    tolerance={"float32": 1e-5, "bfloat16": 2**-7, "int8": 2**-6},
    flops=lambda d: 6 * d["T"] * d["F"],
)
def gated_operand(gate_up: Array, *, act: str, to: str) -> Array:
    """operand(gated(gate, up)), gate and up being the halves of each row."""
    width = gate_up.shape[1] // 2
    y: Array = operand(gated(gate_up[:, :width], gate_up[:, width:], act=act), to=to)
    return y


@op(
    dims="x[T,F] -> y[T,F]",
    tolerance={"float32": 1e-5},
    flops=lambda d: 4 * d["T"] * d["F"],
)
def activated(x: Array, *, act: str) -> Array:
    """act(x), where no gate multiplies it."""
    return ACTIVATIONS[act](x)


@op(
    dims="x[T,F] -> y[T,F]",
    tolerance={"float32": 1e-5, "bfloat16": 2**-7, "int8": 2**-6},
    flops=lambda d: 5 * d["T"] * d["F"],
)
def activated_operand(x: Array, *, act: str, to: str) -> Array:
    """operand(activated(x))."""
    y: Array = operand(activated(x, act=act), to=to)
    return y


@op(
    dims="x[R,V] -> y[R,V]",
    tolerance={"float32": 1e-5},
    flops=lambda d: 5 * d["R"] * d["V"],
)
def softcap(x: Array, *, cap: float) -> Array:
    """cap * tanh(x / cap): logits that stay below `cap`. Gemma 2, arXiv:2408.00118."""
    return np.asarray(np.float32(cap) * np.tanh(x / np.float32(cap)))
