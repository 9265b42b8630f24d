"""Mixture of experts: who reads a row, and what they make of it. No capacity, no token dropped.

A row's experts depend on that row alone: ties go to the lowest index, outputs are summed in slot order.
Shazeer et al. 2017, arXiv:1701.06538.
"""

import numpy as np

from penstock.ops.contract import Array, Sizes, Widths, op
from penstock.ops.linear import linear
from penstock.ops.pointwise import gated
from penstock.ops.rounding import operand

SCORES = ("softmax", "sigmoid", "softmax_chosen")


@op(
    dims="logits[T,E], correction[E]? -> routing[T,2Z]",
    tolerance={"float32": 1e-5},
    flops=lambda d: 8 * d["T"] * d["E"],
)
def route(
    logits: Array,
    correction: Array | None = None,
    *,
    top_k: int,
    score: str = "softmax",
    renormalize: bool = False,
    scale: float = 1.0,
    num_groups: int = 1,
    groups_kept: int = 1,
) -> Array:
    """Each row's `top_k` experts, best first: their indices (whole numbers), then their weights.

    score: softmax over all experts, sigmoid of each, or softmax over the chosen ones' logits. `correction`
    counts in the choice, not in the weight (DeepSeek-V3, arXiv:2412.19437). With `num_groups`, only experts
    of the `groups_kept` best groups are chosen: a group is as good as its two best scores together, or as its
    best one where there is no correction. Weights are divided by their sum where `renormalize`, then scaled.
    """
    scores = _scores(logits, score)
    choice = scores if correction is None else scores + correction
    if num_groups > 1:
        choice = _within_groups(choice, num_groups, groups_kept, count=1 if correction is None else 2)
    chosen = _best(choice, top_k)
    weights = np.take_along_axis(scores, chosen, axis=1)
    if score == "softmax_chosen":
        weights = _softmax(weights)
    if renormalize:
        weights = weights / _sum(weights)
    return np.concatenate([chosen.astype(np.float32), weights * np.float32(scale)], axis=1)


def _scores(logits: Array, score: str) -> Array:
    if score == "softmax":
        return _softmax(logits)
    if score == "sigmoid":
        with np.errstate(over="ignore"):
            return np.asarray(np.float32(1) / (np.float32(1) + np.exp(-logits)))
    assert score == "softmax_chosen", f"{score} is none of {SCORES}"
    return logits


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return np.asarray(e / _sum(e))


def _sum(x: Array) -> Array:
    """Of each row, in order of index: the same for any number of rows."""
    return np.add.accumulate(x, axis=1)[:, -1:]


def _best(x: Array, count: int) -> Array:
    """Indices of the `count` greatest of each row, greatest first, of equals the lowest index."""
    return np.argsort(-x, axis=1, kind="stable")[:, :count]


def _within_groups(choice: Array, num_groups: int, groups_kept: int, *, count: int) -> Array:
    grouped = choice.reshape(len(choice), num_groups, -1)
    tops = -np.sort(-grouped, axis=2)[:, :, :count]
    worth = np.add.accumulate(tops, axis=2)[:, :, -1]
    kept = np.zeros(worth.shape, bool)
    np.put_along_axis(kept, _best(worth, groups_kept), True, axis=1)
    out: Array = np.where(kept[:, :, None], grouped, np.float32(-np.inf)).reshape(choice.shape)
    return out


def _flops(d: Sizes) -> float:
    return 2 * d["T"] * d["Z"] * (d["N"] * d["K"] + d["M"] * d["F"]) / _num_experts(d)


def _traffic(d: Sizes, w: Widths) -> float:
    """The experts that rows reach when each reaches others, and the rows."""
    share = min(1.0, d["T"] * d["Z"] / _num_experts(d))
    weights = d["N"] * d["K"] * w.get("gate_up", 4) + d["M"] * d["F"] * w.get("down", 4)
    return share * weights + d["T"] * d["K"] * (w.get("x", 4) + 4) + 8 * d["T"] * d["Z"]


def _num_experts(d: Sizes) -> float:
    return d["M"] / d["K"]


@op(
    dims="x[T,K], routing[T,2Z], gate_up[N,K], gate_up_bias[N]?, down[M,F], down_bias[M]? -> y[T,K]",
    tolerance={"float32": 1e-5, "bfloat16": 2**-7, "int8": 2**-6},
    flops=_flops,
    traffic=_traffic,
)
def expert_mlp(
    x: Array,
    routing: Array,
    gate_up: Array,
    gate_up_bias: Array | None,
    down: Array,
    down_bias: Array | None,
    *,
    num_experts: int,
    act: str,
    to: str,
) -> Array:
    """y[t] = sum over slots s, ascending, of weight[t, s] * down_e(operand(act(gate_e(x)) * up_e(x))).

    `x` is an operand already. Experts are stacked along N: rows [e * 2F, e * 2F + F) of `gate_up` are the
    gate of expert e, the next F its up; rows [e * K, (e + 1) * K) of `down` are its down. Each slot's
    weight times its output is added to the sum with one rounding in kernels.
    """
    slots = routing.shape[1] // 2
    wide, hidden = gate_up.shape[0] // num_experts, down.shape[0] // num_experts
    y = np.zeros((len(x), hidden), np.float32)
    for t in range(len(x)):
        for s in range(slots):
            e = int(routing[t, s])
            ins, outs = slice(e * wide, (e + 1) * wide), slice(e * hidden, (e + 1) * hidden)
            both = linear(x[t : t + 1], gate_up[ins], None if gate_up_bias is None else gate_up_bias[ins])
            h = operand(gated(both[:, : wide // 2], both[:, wide // 2 :], act=act), to=to)
            part = linear(h, down[outs], None if down_bias is None else down_bias[outs])
            y[t] = y[t] + routing[t, slots + s] * part[0]
    return y
