"""The second half of a decoder block, as calls: an MLP, or experts and whoever chooses among them.

Called by model.build for each layer. Rounding points are written as calls of their own, as there.
"""

from dataclasses import dataclass

from penstock.model.program import Builder
from penstock.model.spec import MLPSpec, MoESpec
from penstock.ops.linear import linear
from penstock.ops.moe import expert_mlp, route
from penstock.ops.pointwise import activated, add, add_gated, gated
from penstock.ops.rounding import operand


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """What a half computes with: its matrices, operands, the cache, a factor of what it makes."""

    weight_format: str
    operand: str
    kv: str
    scale: float = 1.0

    @property
    def attention(self) -> str:
        """What attention computes with."""
        return "float32" if self.kv == "float32" else "bfloat16"


def project(
    b: Builder,
    name: str,
    x: str,
    shape: tuple[int, int],
    format: str,
    *,
    has_bias: bool,
    scale: float = 1.0,
) -> str:
    """x times the matrix `name`, and its bias."""
    weight = b.linear_weight(name, shape, format)
    bias = b.vector(f"{name}_bias", shape[0]) if has_bias else None
    return b(name, linear, x, weight, bias, scale=scale)


def mlp(b: Builder, spec: MLPSpec, x: str, how: Arithmetic, name: str = "mlp") -> str:
    """The MLP called `name` of operand `x`."""
    weight_format = how.weight_format
    inner, outer = (spec.intermediate_size, b.hidden_size), (b.hidden_size, spec.intermediate_size)
    up = project(b, f"{name}.up", x, inner, weight_format, has_bias=spec.bias)
    if spec.is_gated:
        gate = project(b, f"{name}.gate", x, inner, weight_format, has_bias=spec.bias)
        y = b(f"{name}.gated", gated, gate, up, act=spec.act)
    else:
        y = b(f"{name}.activated", activated, up, act=spec.act)
    y = b(f"{name}.out", operand, y, to=how.operand)
    return project(b, f"{name}.down", y, outer, weight_format, has_bias=spec.bias, scale=how.scale)


def experts(b: Builder, spec: MoESpec, h: str, how: Arithmetic) -> str:
    """What the experts of each row of `h`, and the shared one, make of it.

    Who is chosen hangs on small differences, so the router reads the row unrounded and holds float32.
    """
    row = b("mlp.row", operand, h, to="float32")
    bias = b.vector("mlp.router_bias", spec.num_experts) if spec.router_bias else None
    router = b.router_weight("mlp.router", (spec.num_experts, b.hidden_size))
    routing = b(
        "mlp.routing",
        route,
        b("mlp.router", linear, row, router, bias, scale=1.0),
        b.vector("mlp.correction", spec.num_experts) if spec.has_correction else None,
        top_k=spec.top_k,
        score=spec.score,
        renormalize=spec.renormalize,
        scale=spec.scale * how.scale,
        num_groups=spec.num_groups,
        groups_kept=spec.groups_kept,
    )
    to = how.operand
    x = row if to == "float32" else b("mlp.in", operand, h, to=to)
    y = b("mlp.experts", expert_mlp, x, routing, *_expert_weights(b, spec, how.weight_format),
          num_experts=spec.num_experts, act=spec.act, to=to)  # fmt: skip
    if not spec.shared_size:
        return y
    one = mlp(b, MLPSpec(spec.shared_size, act=spec.act), x, how, name="mlp.shared")
    if not spec.shared_gate:
        return b("mlp.sum", add, y, one)
    weight = b.router_weight("mlp.shared_router", (1, b.hidden_size))
    return b("mlp.sum", add_gated, y, one, b("mlp.shared_router", linear, row, weight, None, scale=1.0))


def _expert_weights(b: Builder, spec: MoESpec, format: str) -> tuple[str, str | None, str, str | None]:
    """gate_up, its bias, down, its bias: those of all experts under each other."""
    count, inner, hidden = spec.num_experts, spec.intermediate_size, b.hidden_size
    both, down = ("gate", "up"), ("down",)
    ins, outs = (count * 2 * inner, hidden), (count * hidden, inner)
    return (
        b.experts_weight("mlp.experts", ins, format, count, both),
        b.experts_bias("mlp.experts", ins[0], count, both) if spec.bias else None,
        b.experts_weight("mlp.experts", outs, format, count, down),
        b.experts_bias("mlp.experts", outs[0], count, down) if spec.bias else None,
    )
