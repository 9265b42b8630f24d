"""ModelSpec -> Program. Every `if` on the spec is taken here, once; a program has none.

Writes the plain program: one op per step of the arithmetic, every rounding point a call of its own
(DESIGN.md section 2). `passes.fuse` then makes of it what kernels run, with the same bits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from penstock.model.program import Builder, KVLayer, Program
from penstock.model.rope import rope_tables
from penstock.model.spec import AttentionSpec, MLPSpec, ModelSpec, NormSpec, RopeSpec
from penstock.ops.attention import attention, kv_write
from penstock.ops.embedding import embed, take_rows
from penstock.ops.linear import linear
from penstock.ops.norm import head_norm, rms_norm
from penstock.ops.pointwise import add, gated
from penstock.ops.rope import rope
from penstock.ops.rounding import operand, round_to

FLOAT_FORMATS: Final = (
    "float32",
    "float16",
)  # fp16 weights are widened exactly and run under the FP32 contract


INT_FORMATS: Final = ("int8", "int4_g32", "int4_g64", "int4_g128")  # those that also have an INT kernel


def operand_of(weight_format: str, activations: str = "int8") -> str:
    """What a linear of this format reads: the arithmetic contract follows the weights.

    `activations`: of formats that come in two contracts. Other integer codes are read under the BF16 one.
    """
    if weight_format in FLOAT_FORMATS:
        return "float32"
    return activations if weight_format in INT_FORMATS else "bfloat16"


def build(
    spec: ModelSpec,
    *,
    weight_format: str,
    head_format: str,
    kv_dtype: str,
    max_context: int,
    activations: str = "int8",
    own_formats: Mapping[str, str] | None = None,
) -> Program:
    """The decoder pass of `spec`. The formats, the dtype of the cache and the length are the Plan's.

    `own_formats`: of matrices (by canonical name) that the checkpoint stores as integer codes.
    """
    b = Builder(spec, max_context, own_formats)
    formats = _Formats(weight_format, kv_dtype, activations)
    tables = _rope_constants(b, spec, max_context)
    groups = {layer: index for index, group in enumerate(spec.kv_groups()) for layer in group.layers}

    x = b("embed", embed, "step.tokens", b.embedding("embed", (spec.vocab_size, spec.hidden_size)))
    for index, layer in enumerate(spec.layers):
        b.scope(f"layers.{index}.")
        kv = KVLayer(index, groups[index], layer.attention.num_kv_heads, layer.attention.head_dim, kv_dtype)
        h = _norm(b, "attn_norm", layer.norm, x)
        x = _attention(b, layer.attention, formats, x, h, kv=kv, table=tables.get(layer.attention.rope))
        h = _norm(b, "mlp_norm", layer.norm, x)
        x = _mlp(b, layer.mlp, formats, x, h)
    b.scope("")

    rows = b("last_rows", take_rows, x, "step.logit_rows")
    h = _norm(b, "final_norm", spec.final_norm, rows)
    source = "embed" if spec.tie_embeddings else "lm_head"
    head_operand = operand_of(b.format_of(source, head_format), activations)
    h = b("head_operand", operand, h, to=head_operand)
    head = b.linear_weight("lm_head", (spec.vocab_size, spec.hidden_size), head_format, source)
    b("logits", linear, h, head, None)
    return b.finish()


@dataclass(frozen=True, slots=True)
class _Formats:
    linear: str
    kv: str
    activations: str

    @property
    def operand(self) -> str:
        return operand_of(self.linear, self.activations)

    @property
    def attention(self) -> str:
        return "float32" if self.kv == "float32" else "bfloat16"


def _rope_constants(b: Builder, spec: ModelSpec, max_context: int) -> dict[RopeSpec | None, tuple[str, str]]:
    """Names of the cos and sin tables of every rope in the model."""
    tables: dict[RopeSpec | None, tuple[str, str]] = {}
    for layer in spec.layers:
        rope_spec = layer.attention.rope
        if rope_spec is not None and rope_spec not in tables:
            cos, sin = rope_tables(rope_spec, max_context)
            name = f"rope.{len(tables)}"
            tables[rope_spec] = b.constant(f"{name}.cos", cos), b.constant(f"{name}.sin", sin)
    return tables


def _norm(b: Builder, name: str, spec: NormSpec, x: str) -> str:
    weight = b.vector(name, b.hidden_size)
    return b(name, rms_norm, x, weight, eps=spec.eps, weight_offset=spec.weight_offset)


def _linear(b: Builder, name: str, x: str, shape: tuple[int, int], format: str, *, has_bias: bool) -> str:
    weight = b.linear_weight(name, shape, format)
    return b(name, linear, x, weight, b.vector(f"{name}_bias", shape[0]) if has_bias else None)


def _attention(
    b: Builder,
    spec: AttentionSpec,
    formats: _Formats,
    x: str,
    h: str,
    *,
    kv: KVLayer,
    table: tuple[str, str] | None,
) -> str:
    """x + attention(h)."""
    width, kv_width = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    h = b("attn.in", operand, h, to=formats.operand)
    q, k, v = (
        _linear(b, f"attn.{name}", h, (n, b.hidden_size), formats.linear, has_bias=spec.qkv_bias)
        for name, n in (("q", width), ("k", kv_width), ("v", kv_width))
    )
    q = _positioned(b, "attn.q", spec, q, table)
    k = _positioned(b, "attn.k", spec, k, table)
    q, k, v = (
        b(f"attn.{name}_rounded", round_to, value, to=formats.attention)
        for name, value in (("q", q), ("k", k), ("v", v))
    )
    where = ("step.positions", "step.row_request", f"step.block_table.{kv.group}")
    slopes = b.constant(f"slopes.{kv.layer}", np.array(spec.slopes, np.float32)) if spec.slopes else None
    state = b.kv(kv)
    b("attn.kv", kv_write, k, v, state, *where)
    y = b(
        "attn.heads",
        attention,
        q,
        state,
        *where,
        None if spec.is_causal else "step.context_len",
        b.vector("attn.sinks", spec.num_heads) if spec.sinks else None,
        slopes,
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        scale=spec.scale,
        window=spec.window,
        softcap=spec.softcap,
        to=formats.attention,
    )
    y = b("attn.out", operand, y, to=formats.operand)
    y = _linear(b, "attn.o", y, (b.hidden_size, width), formats.linear, has_bias=spec.o_bias)
    return b("after_attn", add, x, y)


def _positioned(b: Builder, name: str, spec: AttentionSpec, x: str, table: tuple[str, str] | None) -> str:
    """Head norm and rope of q or k, where the spec has them."""
    if spec.qk_norm is not None:
        weight = b.vector(f"{name}_norm", spec.head_dim)
        norm = {"eps": spec.qk_norm.eps, "weight_offset": spec.qk_norm.weight_offset}
        x = b(f"{name}_norm", head_norm, x, weight, head_dim=spec.head_dim, **norm)
    if table is not None:
        x = b(f"{name}_rope", rope, x, "step.positions", *table, head_dim=spec.head_dim)
    return x


def _mlp(b: Builder, spec: MLPSpec, formats: _Formats, x: str, h: str) -> str:
    """x + mlp(h)."""
    h = b("mlp.in", operand, h, to=formats.operand)
    shape = (spec.intermediate_size, b.hidden_size)
    gate, up = (
        _linear(b, f"mlp.{name}", h, shape, formats.linear, has_bias=spec.bias) for name in ("gate", "up")
    )
    y = b("mlp.gated", gated, gate, up, act=spec.act)
    y = b("mlp.out", operand, y, to=formats.operand)
    y = _linear(b, "mlp.down", y, (b.hidden_size, spec.intermediate_size), formats.linear, has_bias=spec.bias)
    return b("after_mlp", add, x, y)
