"""A mixer that keeps a state, as calls: Mamba-2. Called by model.build for each such layer."""

from penstock.model.mlp import Arithmetic, project
from penstock.model.program import Builder, StateLayer
from penstock.model.spec import Mamba2Spec
from penstock.ops.rounding import operand
from penstock.ops.state_space import causal_conv, gated_norm, selective_scan


def mamba2(b: Builder, spec: Mamba2Spec, how: Arithmetic, h: str, *, layer: int, group: int) -> str:
    """What the mixer makes of operand `h`. Between its two products everything is float32."""
    width = spec.width
    columns = width + spec.conv_width + spec.num_heads
    x = project(b, "mixer.in", h, (columns, b.hidden_size), how.weight_format, has_bias=spec.bias)
    state = b.state(
        StateLayer(
            layer, group, spec.num_heads, spec.head_dim, spec.state_size, spec.conv_width, spec.conv_size
        )
    )
    where = (state, "step.positions", "step.row_request", f"step.block_table.{group}")
    kernel = b.tensor("mixer.conv", (spec.conv_width, 1, spec.conv_size))
    bias = b.vector("mixer.conv_bias", spec.conv_width) if spec.conv_bias else None
    xbc = b("mixer.conv", causal_conv, x, kernel, bias, *where, first=width)
    heads = (b.vector(f"mixer.{name}", spec.num_heads) for name in ("dt_bias", "a_log", "skip"))
    y = b(
        "mixer.scan",
        selective_scan,
        xbc,
        x,
        *heads,
        *where,
        num_heads=spec.num_heads,
        head_dim=spec.head_dim,
        state_size=spec.state_size,
        num_groups=spec.num_groups,
        dt_limit=spec.dt_limit,
    )
    weight = b.vector("mixer.gate_norm", width)
    y = b("mixer.gated", gated_norm, y, x, weight, span=width // spec.num_groups, eps=spec.norm.eps)
    y = b("mixer.gated_operand", operand, y, to=how.operand)
    shape = (b.hidden_size, width)
    return project(b, "mixer.out", y, shape, how.weight_format, has_bias=spec.bias, scale=how.scale)
