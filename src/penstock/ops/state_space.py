"""The ops of a Mamba-2 mixer between its two products: convolution, scan, gated norm. arXiv:2405.21060.

One arithmetic: position by position, whatever the steps were. A request's rows stand together and in order;
the first goes on from the state of the position before it, and the state after a row is stored where its
place ends or its step does, if the place has a block (0 is none).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from penstock.ops.contract import Array, op
from penstock.ops.norm import norm
from penstock.ops.pointwise import ACTIVATIONS
from penstock.ops.rounding import operand

MAX_LINEAR = 20.0  # above it softplus(x) is x in float32


@dataclass(frozen=True, slots=True)
class StateBlocks:
    """One layer's states as the references hold them, one in each of X blocks of `block_size` tokens."""

    inputs: Array  # [X,W-1,C] float32: what the convolution read last, oldest first
    states: Array  # [X,h,D,N]
    block_size: int


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of the step: where its state comes from if it is a request's first, and where it is stored."""

    is_first: bool
    source: int | None  # None: the text begins here
    target: int  # 0: nowhere


def _rows(state: StateBlocks, positions: Array, row_request: Array, block_table: Array) -> Iterator[_Row]:
    for t, position in enumerate(positions.tolist()):
        request = row_request[t]
        is_first = t == 0 or request != row_request[t - 1]
        is_last = t + 1 == len(positions) or request != row_request[t + 1]
        source = int(block_table[request, (position - 1) // state.block_size]) if position else None
        ends = is_last or (position + 1) % state.block_size == 0
        target = int(block_table[request, position // state.block_size]) if ends else 0
        assert source != 0 or not is_first, "a state is read from the null block"
        assert target != 0 or not is_last, "the state that a step ends with is lost"
        yield _Row(is_first, source, target)


@op(
    dims=(
        "x[T,J], weight[U,O,W], bias[U]?, state, positions[T]:S, row_request[T]:B, block_table[B,M]:X"
        " -> y[T,U]"
    ),
    tolerance={"float32": 1e-5},
    flops=lambda d: 2 * d["T"] * d["U"] * d["W"],
    traffic=lambda d, _: 8 * d["T"] * d["U"] + 8 * d["B"] * d["U"] * d["W"],
    mutates=("state",),
)
def causal_conv(
    x: Array,
    weight: Array,
    bias: Array | None,
    state: StateBlocks,
    positions: Array,
    row_request: Array,
    block_table: Array,
    *,
    first: int,
) -> Array:
    """silu of each channel's weighted sum over the last W positions. Its U channels begin at `first` in x."""
    channels, taps = weight.shape[0], weight.shape[-1]
    kernel = weight.reshape(channels, taps).T
    y = np.empty((len(x), channels), np.float32)
    seen = np.zeros((taps - 1, channels), np.float32)
    for t, row in enumerate(_rows(state, positions, row_request, block_table)):
        if row.is_first:
            seen = np.zeros_like(seen) if row.source is None else state.inputs[row.source]
        window = np.concatenate([seen, x[t : t + 1, first : first + channels]])
        total = np.zeros(channels, np.float32) if bias is None else bias
        for tap in range(taps):
            total = total + kernel[tap] * window[tap]
        y[t] = ACTIVATIONS["silu"](total)
        seen = window[1:]
        if row.target:
            state.inputs[row.target] = seen
    return y


@op(
    dims=(
        "xbc[T,U], x[T,J], dt_bias[h], a_log[h], skip[h], state, positions[T]:S, row_request[T]:B,"
        " block_table[B,M]:X -> y[T,Q]"
    ),
    tolerance={"float32": 1e-4},
    flops=lambda d: 6 * d["T"] * d["Q"] * d["N"],
    traffic=lambda d, _: 4 * d["T"] * (d["U"] + d["h"] + d["Q"]) + 8 * d["B"] * d["Q"] * d["N"],
    mutates=("state",),
)
def selective_scan(
    xbc: Array,
    x: Array,
    dt_bias: Array,
    a_log: Array,
    skip: Array,
    state: StateBlocks,
    positions: Array,
    row_request: Array,
    block_table: Array,
    *,
    num_heads: int,
    head_dim: int,
    state_size: int,
    num_groups: int,
    dt_limit: tuple[float, float] | None,
) -> Array:
    """y = state c + skip x, after state = exp(-dt e^a_log) state + dt x b^T, head by head.

    dt = softplus(x's last columns + dt_bias), held within `dt_limit`. Heads of a group share b and c.
    """
    width, per_group = num_heads * head_dim, num_heads // num_groups
    y = np.empty((len(x), width), np.float32)
    live = np.zeros((num_heads, head_dim, state_size), np.float32)
    decay = -np.exp(a_log)
    for t, row in enumerate(_rows(state, positions, row_request, block_table)):
        if row.is_first:
            live = np.zeros_like(live) if row.source is None else state.states[row.source]
        inputs = xbc[t, :width].reshape(num_heads, head_dim)
        b, c = (part.reshape(num_groups, state_size) for part in np.split(xbc[t, width:], 2))
        b, c = (part.repeat(per_group, axis=0)[:, None] for part in (b, c))
        dt = _softplus(x[t, -num_heads:] + dt_bias)
        if dt_limit is not None:
            dt = np.clip(dt, np.float32(dt_limit[0]), np.float32(dt_limit[1]))
        live = live * np.exp(dt * decay)[:, None, None] + (dt[:, None] * inputs)[:, :, None] * b
        y[t] = ((live * c).sum(axis=-1, dtype=np.float32) + skip[:, None] * inputs).ravel()
        if row.target:
            state.states[row.target] = live
    return y


def _softplus(x: Array) -> Array:
    small = np.log1p(np.exp(np.minimum(x, np.float32(MAX_LINEAR))))
    return np.asarray(np.where(x > MAX_LINEAR, x, small))


@op(
    dims="y[T,Q], x[T,J], weight[Q] -> out[T,Q]",
    tolerance={"float32": 1e-5},
    flops=lambda d: 9 * d["T"] * d["Q"],
)
def gated_norm(y: Array, x: Array, weight: Array, *, span: int, eps: float) -> Array:
    """RMS norm of every `span` values of y * silu(z), z being the first columns of x."""
    gated = y * ACTIVATIONS["silu"](x[:, : y.shape[1]])
    spans = norm(gated.reshape(-1, span), None, None, eps=eps).reshape(y.shape)
    return np.asarray(spans * weight)


@op(
    dims="y[T,Q], x[T,J], weight[Q] -> out[T,Q]",
    tolerance={"float32": 1e-5, "bfloat16": 2**-7, "int8": 2**-6},
    flops=lambda d: 10 * d["T"] * d["Q"],
)
def gated_norm_operand(y: Array, x: Array, weight: Array, *, span: int, eps: float, to: str) -> Array:
    """operand(gated_norm(y, x, weight))."""
    out: Array = operand(gated_norm(y, x, weight, span=span, eps=eps), to=to)
    return out
