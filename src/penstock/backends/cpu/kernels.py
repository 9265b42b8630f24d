"""Which ops of a program the native backend runs, and how each is said to the recorded program.

One entry per op: a function (lowering, call) that appends one native op. An op that is not here has no native
kernel; `refusals` names it, and the planner falls back to the reference backend, aloud.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from penstock.kv.codec import padded_dim
from penstock.model.program import Call, Program, StateLayer, WeightUse
from penstock.weights.format import PANEL_COLUMNS

if TYPE_CHECKING:
    from penstock.backends.cpu.lower import Lowering

Lower = Callable[["Lowering", Call], None]


def _embed(low: "Lowering", call: Call) -> None:
    tokens, weight, positions, places = call.inputs
    assert (tokens, positions) == ("step.tokens", "step.positions")
    place_table, place_dtype = (None, "float32") if places is None else low.embedding(places)
    place = (call.attrs["scale"], place_table, place_dtype, call.attrs["position_offset"])
    coded = low.coded_embedding(weight)
    if coded is not None:
        packed, weight_format, (n, k) = coded
        low.native.embed_codes(packed, weight_format, n, k, *place, low.floats(call, k))
        return
    table, dtype = low.embedding(weight)
    low.native.embed(table, dtype, *place, low.floats(call, table.shape[1]))


def _embed_positions(low: "Lowering", call: Call) -> None:
    positions, weight = call.inputs
    assert positions == "step.positions"
    table, dtype = low.embedding(weight)
    low.native.embed_positions(table, dtype, call.attrs["offset"], low.floats(call, table.shape[1]))


def _norm(low: "Lowering", call: Call) -> None:
    x, weight, bias = call.inputs
    _normed(low, call, x, weight, bias)


def _norm_add(low: "Lowering", call: Call) -> None:
    x, weight, bias, residual = call.inputs
    _normed(low, call, x, weight, bias, residual=residual)


def _rows_norm_operand(low: "Lowering", call: Call) -> None:
    x, rows, weight, bias = call.inputs
    if rows == "step.hidden_rows":
        _normed(low, call, x, weight, bias, rows="hidden")
        return
    assert rows == "step.logit_rows"
    low.on_logit_rows.add(call.output)
    _normed(low, call, x, weight, bias, rows="logits")


def _normed(
    low: "Lowering",
    call: Call,
    x: str | None,
    weight: str | None,
    bias: str | None,
    *,
    residual: str | None = None,
    rows: str = "step",
) -> None:
    """Into an operand, or into rows of fp32: hidden rows are for people to read, and no operand."""
    attrs, width = call.attrs, low.width(x)
    is_operand = "to" in attrs and rows != "hidden"
    out = low.operand(call, attrs["to"], width) if is_operand else low.floats(call, width)
    low.native.norm(
        low[x], low.vector(weight), low.vector(bias), attrs["kind"], attrs["eps"], attrs["weight_offset"],
        -1 if residual is None else low[residual], rows, out,
    )  # fmt: skip


def _operand(low: "Lowering", call: Call) -> None:
    (x,) = call.inputs
    low.follow_rows(call, x)
    out = low.operand(call, call.attrs["to"], low.width(x))
    low.native.to_operand(low[x], call.output in low.on_logit_rows, out)


def _linear(low: "Lowering", call: Call) -> None:
    x, weight, bias = call.inputs
    _product(low, call, x, weight, bias, None)


def _linear_add(low: "Lowering", call: Call) -> None:
    x, weight, bias, residual = call.inputs
    _product(low, call, x, weight, bias, residual)


def _product(
    low: "Lowering", call: Call, x: str | None, weight: str | None, bias: str | None, residual: str | None
) -> None:
    packed, weight_format, (n, k) = low.packed(weight)
    low.follow_rows(call, x)
    out = low.floats(call, n)
    addend = -1 if residual is None else low[residual]
    on_logit_rows = call.output in low.on_logit_rows
    low.native.linear(
        packed, weight_format, n, k, low[x], out, low.vector(bias), call.attrs.get("scale", 1.0), addend,
        on_logit_rows,
    )  # fmt: skip


def _split_rope_write(low: "Lowering", call: Call) -> None:
    qkv, q_norm, k_norm, _, _, cos, sin, kv, _, _ = call.inputs
    attrs = call.attrs
    pool, first_byte, layer = low.kv(kv)
    cos_table, sin_table = low.constant(cos), low.constant(sin)
    rotary = 0 if cos_table is None else 2 * cos_table.shape[1]
    out = low.floats(call, attrs["num_heads"] * padded_dim(attrs["head_dim"]))
    norm = attrs["norm"]
    low.native.rope_write(
        low[qkv], attrs["num_heads"], rotary, attrs["interleaved"], low.vector(q_norm), low.vector(k_norm),
        norm.get("kind", "rms"), norm["eps"], norm.get("weight_offset", 0.0), attrs["norm_row"], cos_table,
        sin_table, layer.group, pool, first_byte, attrs["num_kv_heads"], attrs["head_dim"],
        layer.dtype, out,
    )  # fmt: skip


def _attention(low: "Lowering", call: Call) -> None:
    q, kv, _, _, _, _, context_len, sinks, slopes = call.inputs
    attrs = call.attrs
    pool, first_byte, layer = low.kv(kv)
    out = low.floats(call, attrs["num_heads"] * (layer.latent_dim or attrs["head_dim"]))
    low.native.attention(
        low[q], attrs["num_heads"], attrs["scale"], attrs.get("softcap") or 0.0, attrs.get("window") or 0,
        context_len is None, low.vector(sinks), low.constant(slopes), layer.group, pool, first_byte,
        attrs["num_kv_heads"], attrs["head_dim"], layer.latent_dim, layer.dtype, out,
    )  # fmt: skip


def _heads_operand(low: "Lowering", call: Call) -> None:
    (x,) = call.inputs
    num_heads = call.attrs["num_heads"]
    out = low.operand(call, call.attrs["to"], low.width(x) // num_heads, num_heads=num_heads)
    low.native.heads_operand(low[x], num_heads, out)


def _heads_linear(low: "Lowering", call: Call) -> None:
    x, weight = call.inputs
    packed, weight_format, (n, k) = low.packed(weight)
    num_heads = call.attrs["num_heads"]
    low.native.heads_linear(packed, weight_format, n, k, num_heads, low[x], low.floats(call, n))


def _latent_rope_write(low: "Lowering", call: Call) -> None:
    latent, q_latent, q_rope, weight, _, _, cos, sin, kv, _, _ = call.inputs
    attrs, norm = call.attrs, call.attrs["norm"]
    pool, first_byte, layer = low.kv(kv)
    norm_weight, cos_table, sin_table = low.vector(weight), low.constant(cos), low.constant(sin)
    assert norm_weight is not None, "latents are normed"
    assert cos_table is not None, "and the key beside them turns"
    assert sin_table is not None, "by both tables"
    out = low.floats(call, attrs["num_heads"] * padded_dim(attrs["head_dim"]))
    low.native.latent_write(
        low[latent], low[q_latent], low[q_rope], attrs["num_heads"], attrs["interleaved"],
        norm_weight, norm["kind"], norm["eps"], norm["weight_offset"], cos_table, sin_table, layer.group,
        pool, first_byte, attrs["head_dim"], attrs["latent_dim"], layer.dtype, out,
    )  # fmt: skip


def _gated_operand(low: "Lowering", call: Call) -> None:
    (gate_up,) = call.inputs
    out = low.operand(call, call.attrs["to"], low.width(gate_up) // 2)
    low.native.gated(low[gate_up], call.attrs["act"], True, out)


def _activated_operand(low: "Lowering", call: Call) -> None:
    (x,) = call.inputs
    out = low.operand(call, call.attrs["to"], low.width(x))
    low.native.gated(low[x], call.attrs["act"], False, out)


def _softcap(low: "Lowering", call: Call) -> None:
    (x,) = call.inputs
    low.follow_rows(call, x)
    low.native.softcap(low[x], call.attrs["cap"], low.floats(call, low.width(x)))


def _join(low: "Lowering", call: Call) -> None:
    left, right = call.inputs
    out = low.floats(call, low.width(left) + low.width(right))
    low.native.join(low[left], low[right], out)


def _add(low: "Lowering", call: Call) -> None:
    x, y = call.inputs
    low.native.add(low[x], low[y], -1, low.floats(call, low.width(x)))


def _add_gated(low: "Lowering", call: Call) -> None:
    x, y, gate = call.inputs
    low.native.add(low[x], low[y], low[gate], low.floats(call, low.width(x)))


def _route(low: "Lowering", call: Call) -> None:
    logits, correction = call.inputs
    attrs = call.attrs
    out = low.floats(call, 2 * attrs["top_k"])
    low.native.route(
        low[logits], low.vector(correction), attrs["top_k"], attrs["score"], attrs["renormalize"],
        attrs["scale"], attrs["num_groups"], attrs["groups_kept"], out,
    )  # fmt: skip


def _expert_mlp(low: "Lowering", call: Call) -> None:
    x, routing, gate_up, gate_up_bias, down, down_bias = call.inputs
    packed_in, format_in, (n_in, k_in) = low.packed(gate_up)
    packed_out, format_out, (n_out, k_out) = low.packed(down)
    out = low.floats(call, low.width(x))
    low.native.experts(
        low[x], low[routing], packed_in, format_in, n_in, k_in, low.vector(gate_up_bias), packed_out,
        format_out, n_out, k_out, low.vector(down_bias), call.attrs["num_experts"], call.attrs["act"],
        low.values_inside(call), low.num_resident(call.attrs["num_experts"]), out,
    )  # fmt: skip


def foresee(low: "Lowering", call: Call, router: Call, route: Call) -> None:
    """The next layer's router reads this layer's row: a guess of who will be asked for, read ahead.

    Eliseev and Mazur 2023, arXiv:2312.17238. No value of the program hangs on it.
    """
    logits, routing = low.values_inside(call)
    _, weight, bias = router.inputs
    packed, weight_format, (n, k) = low.packed(weight)
    low.native.linear(
        packed, weight_format, n, k, low[call.inputs[0]], logits, low.vector(bias), 1.0, -1, False
    )
    attrs, correction = route.attrs, route.inputs[1]
    low.native.route(
        logits, low.vector(correction), attrs["top_k"], attrs["score"], attrs["renormalize"],
        attrs["scale"], attrs["num_groups"], attrs["groups_kept"], routing,
    )  # fmt: skip
    low.native.foresee(routing, n)


def _causal_conv(low: "Lowering", call: Call) -> None:
    x, weight, bias, state, *_ = call.inputs
    pool, first_byte, layer = low.state(state)
    out = low.floats(call, layer.conv_width)
    low.native.causal_conv(
        low[x], low.taps(weight), low.vector(bias), call.attrs["first"], layer.group, pool, first_byte,
        _state_sizes(layer), out,
    )  # fmt: skip


def _selective_scan(low: "Lowering", call: Call) -> None:
    xbc, x, dt_bias, a_log, skip, state, *_ = call.inputs
    pool, first_byte, layer = low.state(state)
    out = low.floats(call, layer.num_heads * layer.head_dim)
    low.native.selective_scan(
        low[xbc], low[x], low.vector(dt_bias), low.vector(a_log), low.vector(skip),
        call.attrs["num_groups"], call.attrs["dt_limit"], layer.group, pool, first_byte, _state_sizes(layer),
        out,
    )  # fmt: skip


def _state_sizes(layer: StateLayer) -> list[int]:
    return [layer.num_heads, layer.head_dim, layer.state_size, layer.conv_width, layer.conv_size]


def _gated_norm_operand(low: "Lowering", call: Call) -> None:
    y, x, weight = call.inputs
    out = low.operand(call, call.attrs["to"], low.width(y))
    low.native.gated_norm(low[y], low[x], low.vector(weight), call.attrs["span"], call.attrs["eps"], out)


CPU: Mapping[str, Lower] = {
    "causal_conv": _causal_conv,
    "selective_scan": _selective_scan,
    "gated_norm_operand": _gated_norm_operand,
    "add": _add,
    "add_gated": _add_gated,
    "route": _route,
    "expert_mlp": _expert_mlp,
    "embed": _embed,
    "embed_positions": _embed_positions,
    "norm": _norm,
    "norm_add": _norm_add,
    "norm_operand": _norm,
    "rows_norm_operand": _rows_norm_operand,
    "operand": _operand,
    "linear": _linear,
    "linear_add": _linear_add,
    "split_rope_write": _split_rope_write,
    "attention": _attention,
    "heads_operand": _heads_operand,
    "heads_linear": _heads_linear,
    "latent_rope_write": _latent_rope_write,
    "gated_operand": _gated_operand,
    "join": _join,
    "activated_operand": _activated_operand,
    "softcap": _softcap,
}


MAX_HEAD_DIM = 576  # what the attention kernels' scratch is sized for


def refusals(program: Program) -> list[str]:
    """Why the native backend cannot run a (fused) program, as sentences; empty: all of it is native."""
    missing = dict.fromkeys(call.op.name for call in program.calls if call.op.name not in CPU)
    reasons = [f"op {name} has no native kernel" for name in missing]
    widest = max((layer.head_dim for layer in program.kv_layers), default=0)
    if widest > MAX_HEAD_DIM:
        reasons.append(f"head_dim {widest} is above the native kernels' {MAX_HEAD_DIM}")
    for call in program.calls:
        for weight, count, what in _shared_weights(program, call):
            rows = weight.shape[0] // count
            if rows % PANEL_COLUMNS:
                reason = f"{what} of {rows} columns are no whole panels of {PANEL_COLUMNS}"
                return [*reasons, reason]
    return reasons


def _shared_weights(program: Program, call: Call) -> list[tuple[WeightUse, int, str]]:
    """Matrices that hold those of many, one after the other: of how many, and what they are called."""
    attrs, weights = call.attrs, program.weights
    if call.op.name == "expert_mlp":
        uses = [weights[str(call.inputs[i]).removeprefix("weights.")] for i in (2, 4)]
        return [(use, attrs["num_experts"], "experts") for use in uses]
    if call.op.name == "heads_linear":
        return [(weights[str(call.inputs[1]).removeprefix("weights.")], attrs["num_heads"], "heads")]
    return []
