"""ModelSpec -> Program. Every `if` on the spec is taken here, once; a program has none.

Writes the plain program: one op per step of the arithmetic, every rounding point a call of its own
(DESIGN.md section 2). `passes.fuse` then makes of it what kernels run, with the same bits.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from penstock.model.latent import latent_attention
from penstock.model.mlp import Arithmetic, experts, mlp, project
from penstock.model.program import Builder, KVLayer, Program
from penstock.model.rope import rope_tables
from penstock.model.spec import (
    AttentionSpec,
    LatentAttentionSpec,
    LayerSpec,
    Mamba2Spec,
    ModelSpec,
    MoESpec,
    NormSpec,
    RopeSpec,
)
from penstock.model.state_space import mamba2
from penstock.ops.attention import attention, kv_write
from penstock.ops.embedding import embed, embed_positions, take_rows
from penstock.ops.linear import linear
from penstock.ops.norm import head_norm, norm, rows_norm_operand
from penstock.ops.pointwise import add, softcap
from penstock.ops.rope import rope
from penstock.ops.rounding import operand, round_to
from penstock.weights.format import FORMATS


def operand_of(weight_format: str, activations: str = "int8") -> str:
    """What a linear of this format reads: the arithmetic contract follows the weights.

    `activations`: of formats that come in two contracts.
    """
    operands = FORMATS[weight_format].operands
    return activations if activations in operands else operands[0]


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
    how = Arithmetic(weight_format, operand_of(weight_format, activations), kv_dtype)
    tables = _rope_constants(b, spec, max_context)
    groups = {layer: index for index, group in enumerate(spec.kv_groups()) for layer in group.layers}

    x = _embedding(b, spec, how)
    for index, layer in enumerate(spec.layers):
        b.scope(f"layers.{index}.")
        is_last = index == spec.num_layers - 1
        table = tables.get(layer.mixer.rope)
        x = _layer(b, layer, how, x, index=index, group=groups[index], table=table, is_last=is_last)
    if spec.layers[-1].norm_sums:
        final = _norm_inputs(b, "mlp_norm", spec.final_norm)
        b.scope("")
    else:
        b.scope("")
        final = _norm_inputs(b, "final_norm", spec.final_norm)

    attrs = _norm_attrs(spec.final_norm)
    b.tap("hidden", rows_norm_operand, x, "step.hidden_rows", *final, **attrs, to="float32")
    if not spec.has_head:
        return b.finish()
    rows = b("last_rows", take_rows, x, "step.logit_rows")
    h = b("final_norm", norm, rows, *final, **attrs)
    if spec.embed_size is not None:
        h = _projected(b, "embed_out", h, (spec.embed_size, spec.hidden_size), how)
    source = "embed" if spec.tie_embeddings else "lm_head"
    head_operand = operand_of(b.format_of(source, head_format), activations)
    h = b("head_operand", operand, h, to=head_operand)
    shape = (spec.vocab_size, spec.embed_size or spec.hidden_size)
    head = b.linear_weight("lm_head", shape, head_format, source)
    if spec.logit_softcap is None:
        b("logits", linear, h, head, None, scale=spec.logit_scale)
    else:
        h = b("raw_logits", linear, h, head, None, scale=spec.logit_scale)
        b("logits", softcap, h, cap=spec.logit_softcap)
    return b.finish()


def _kv_layer(index: int, group: int, mixer: AttentionSpec | LatentAttentionSpec, dtype: str) -> KVLayer:
    latent_dim = mixer.latent_dim if isinstance(mixer, LatentAttentionSpec) else 0
    return KVLayer(index, group, mixer.num_kv_heads, mixer.head_dim, dtype, latent_dim)


def _rope_constants(b: Builder, spec: ModelSpec, max_context: int) -> dict[RopeSpec | None, tuple[str, str]]:
    """Names of the cos and sin tables of every rope in the model."""
    tables: dict[RopeSpec | None, tuple[str, str]] = {}
    for layer in spec.layers:
        rope_spec = layer.mixer.rope
        if rope_spec is not None and rope_spec not in tables:
            cos, sin = rope_tables(rope_spec, max_context)
            name = f"rope.{len(tables)}"
            tables[rope_spec] = b.constant(f"{name}.cos", cos), b.constant(f"{name}.sin", sin)
    return tables


def _embedding(b: Builder, spec: ModelSpec, how: Arithmetic) -> str:
    """The first value of the residual stream."""
    table = b.embedding("embed", (spec.vocab_size, spec.embed_size or spec.hidden_size))
    places, offset = None, 0
    if spec.positions is not None:
        places = b.embedding("positions", (spec.positions.num_rows, spec.hidden_size))
        offset = spec.positions.offset
    if spec.embed_size is None:
        attrs = {"scale": spec.embed_scale, "position_offset": offset}
        x = b("embed", embed, "step.tokens", table, "step.positions", places, **attrs)
    else:
        attrs = {"scale": spec.embed_scale, "position_offset": 0}
        x = b("embed", embed, "step.tokens", table, "step.positions", None, **attrs)
        x = _projected(b, "embed_in", x, (spec.hidden_size, spec.embed_size), how)
        if places is not None:
            x = b("placed", add, b("places", embed_positions, "step.positions", places, offset=offset), x)
    return x if spec.embed_norm is None else _norm(b, "embed_norm", spec.embed_norm, x)


def _projected(b: Builder, name: str, x: str, shape: tuple[int, int], how: Arithmetic) -> str:
    """Between the width of the embedding and that of the residual stream."""
    x = b(f"{name}_operand", operand, x, to=how.operand)
    return project(b, name, x, shape, how.weight_format, has_bias=False)


def _layer(
    b: Builder,
    spec: LayerSpec,
    how: Arithmetic,
    x: str,
    *,
    index: int,
    group: int,
    table: tuple[str, str] | None,
    is_last: bool,
) -> str:
    """One block: the residual stream after it; of the last, before the norm of its sum, if there is one.

    That one is the final norm: only the rows need it that somebody reads.
    """
    h = _normed(b, "attn", spec, x)
    h = shared = b("attn.in", operand, h, to=how.operand)
    how = replace(how, scale=spec.residual_scale)
    if isinstance(spec.mixer, Mamba2Spec):
        y = mamba2(b, spec.mixer, how, h, layer=index, group=group)
    elif isinstance(spec.mixer, LatentAttentionSpec):
        assert table is not None, "a part of every key turns"
        kv = _kv_layer(index, group, spec.mixer, how.kv)
        y = latent_attention(b, spec.mixer, how, h, kv=kv, table=table)
    else:
        y = _attention(b, spec.mixer, how, h, kv=_kv_layer(index, group, spec.mixer, how.kv), table=table)
    after = _normed_sum(b, "attn", spec, _joined(b, "attn", spec, x, y))
    if spec.mlp is None:
        return after
    if isinstance(spec.mlp, MoESpec):
        assert not spec.is_parallel, "no model has experts beside its attention"
        y = experts(b, spec.mlp, _normed(b, "mlp", spec, after), how)
    elif spec.is_parallel and spec.shares_norm:
        y = mlp(b, spec.mlp, shared, how)
    else:
        h = _normed(b, "mlp", spec, x if spec.is_parallel else after)
        y = mlp(b, spec.mlp, b("mlp.in", operand, h, to=how.operand), how)
    y = _joined(b, "mlp", spec, after, y)
    return y if is_last else _normed_sum(b, "mlp", spec, y)


def _normed(b: Builder, half: str, spec: LayerSpec, x: str) -> str:
    """What a half of the block reads."""
    return _norm(b, f"{half}_norm", spec.norm, x) if spec.norm_inputs else x


def _joined(b: Builder, half: str, spec: LayerSpec, x: str, y: str) -> str:
    """x plus what a half of the block made of it."""
    if spec.norm_outputs:
        y = _norm(b, f"{half}_out_norm", spec.norm, y)
    return b(f"after_{half}", add, x, y)


def _normed_sum(b: Builder, half: str, spec: LayerSpec, x: str) -> str:
    """The residual stream after a half of the block."""
    return _norm(b, f"{half}_norm", spec.norm, x) if spec.norm_sums else x


def _norm(b: Builder, name: str, spec: NormSpec, x: str) -> str:
    return b(name, norm, x, *_norm_inputs(b, name, spec), **_norm_attrs(spec))


def _norm_inputs(b: Builder, name: str, spec: NormSpec) -> tuple[str | None, str | None]:
    """Its weight and bias."""
    weight = b.vector(name, b.hidden_size) if spec.has_weight else None
    bias = b.vector(f"{name}_bias", b.hidden_size) if spec.has_bias else None
    return weight, bias


def _norm_attrs(spec: NormSpec) -> dict[str, float | str]:
    return {"eps": spec.eps, "weight_offset": spec.weight_offset, "kind": spec.kind}


def _attention(
    b: Builder,
    spec: AttentionSpec,
    how: Arithmetic,
    h: str,
    *,
    kv: KVLayer,
    table: tuple[str, str] | None,
) -> str:
    width, kv_width = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    q, k, v = (
        project(b, f"attn.{name}", h, (n, b.hidden_size), how.weight_format, has_bias=spec.qkv_bias)
        for name, n in (("q", width), ("k", kv_width), ("v", kv_width))
    )
    q = _positioned(b, "attn.q", spec, q, width, table)
    k = _positioned(b, "attn.k", spec, k, kv_width, table)
    q, k, v = (
        b(f"attn.{name}_rounded", round_to, value, to=to, head_dim=spec.head_dim)
        for name, value, to in (("q", q, how.attention), ("k", k, how.kv), ("v", v, how.kv))
    )
    where = ("step.row_request", f"step.block_table.{kv.group}")
    slopes = b.constant(f"slopes.{kv.layer}", np.array(spec.slopes, np.float32)) if spec.slopes else None
    state = b.kv(kv)
    b("attn.kv", kv_write, k, v, state, "step.slots", *where)
    y = b(
        "attn.heads",
        attention,
        q,
        state,
        "step.positions",
        *where,
        "step.path",
        None if spec.is_causal else "step.context_len",
        b.vector("attn.sinks", spec.num_heads) if spec.sinks else None,
        slopes,
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        scale=spec.scale,
        window=spec.window,
        softcap=spec.softcap,
        to=how.attention,
    )
    y = b("attn.out", operand, y, to=how.operand)
    shape = (b.hidden_size, width)
    return project(b, "attn.o", y, shape, how.weight_format, has_bias=spec.o_bias, scale=how.scale)


def _positioned(
    b: Builder, name: str, spec: AttentionSpec, x: str, width: int, table: tuple[str, str] | None
) -> str:
    """Norm and rope of q or k, where the spec has them."""
    if spec.qk_norm is not None:
        assert spec.qk_norm.has_weight, "a norm of queries and keys has a weight"
        assert not spec.qk_norm.has_bias, "and no bias"
        weight = b.vector(f"{name}_norm", spec.head_dim if spec.qk_norm_over == "head" else width)
        span = width if spec.qk_norm_over == "row" else spec.head_dim
        x = b(f"{name}_norm", head_norm, x, weight, span=span, **_norm_attrs(spec.qk_norm))
    if table is not None:
        assert spec.rope is not None, "a table is of a rope"
        attrs = {"head_dim": spec.head_dim, "interleaved": spec.rope.interleaved}
        x = b(f"{name}_rope", rope, x, "step.positions", *table, **attrs)
    return x
