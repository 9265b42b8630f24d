"""Attention of latents, as calls: absorbed, so that every head reads the latents themselves (MLA).

Called by model.build for each layer that has it. A head's key is k_up latent, and q . (k_up latent) is
(k_up' q) . latent: queries go through k_up, and what attention sums of the latents through v_up. No key and
no value of a head is ever made, in a prompt as in decoding, so that both have the same bits.
DeepSeek-AI 2024, arXiv:2405.04434, section 2.1.2.
"""

from penstock.model.mlp import Arithmetic, project
from penstock.model.program import Builder, KVLayer
from penstock.model.spec import LatentAttentionSpec, NormSpec
from penstock.ops.attention import attention, kv_write
from penstock.ops.heads import heads_linear, heads_operand, join_heads
from penstock.ops.norm import norm
from penstock.ops.pointwise import join
from penstock.ops.rope import rope
from penstock.ops.rounding import operand, round_to


def latent_attention(
    b: Builder,
    spec: LatentAttentionSpec,
    how: Arithmetic,
    h: str,
    *,
    kv: KVLayer,
    table: tuple[str, str],
) -> str:
    """The attention half of operand `h`: what it adds to the residual stream."""
    heads, latent_dim, matrices = spec.num_heads, spec.latent_dim, how.weight_format
    sizes = {"num_heads": heads, "head_dim": spec.head_dim, "latent_dim": latent_dim}

    def turned(name: str, x: str) -> str:
        attrs = {"head_dim": spec.rope_dim, "interleaved": spec.rope.interleaved}
        return b(f"{name}_turned", rope, x, "step.positions", *table, **attrs)

    q_nope, q_rope = _queries(b, spec, how, h)
    q_nope = b("attn.q_operand", heads_operand, q_nope, num_heads=heads, to=how.operand)
    k_up = b.linear_weight("attn.k_up", (heads * latent_dim, spec.nope_dim), matrices)
    q = b("attn.q_latent", heads_linear, q_nope, k_up, num_heads=heads)
    q = b("attn.q", join_heads, q, turned("attn.q_rope", q_rope), num_heads=heads)
    q = b("attn.q_rounded", round_to, q, to=how.attention, head_dim=spec.head_dim)

    latent, key = (
        project(b, f"attn.{name}", h, (rows, b.hidden_size), matrices, has_bias=spec.bias)
        for name, rows in (("latent", latent_dim), ("k_rope", spec.rope_dim))
    )
    latent = _norm(b, "attn.latent_norm", spec.norm, latent, latent_dim)
    k = b("attn.k", join, latent, turned("attn.k_rope", key))
    k = b("attn.k_rounded", round_to, k, to=how.kv, head_dim=spec.head_dim)

    where, state = ("step.row_request", f"step.block_table.{kv.group}"), b.kv(kv)
    b("attn.kv", kv_write, k, None, state, "step.slots", *where)
    y = b(
        "attn.heads", attention, q, state, "step.positions", *where, "step.path", None, None, None,
        **sizes, num_kv_heads=1, scale=spec.scale, window=spec.window, softcap=None, to=how.attention,
    )  # fmt: skip
    y = b("attn.latent_operand", heads_operand, y, num_heads=heads, to=how.operand)
    v_up = b.linear_weight("attn.v_up", (heads * spec.value_dim, latent_dim), matrices)
    y = b("attn.values", heads_linear, y, v_up, num_heads=heads)
    y = b("attn.out", operand, y, to=how.operand)
    shape = (b.hidden_size, heads * spec.value_dim)
    return project(b, "attn.o", y, shape, matrices, has_bias=spec.bias, scale=how.scale)


def _queries(b: Builder, spec: LatentAttentionSpec, how: Arithmetic, h: str) -> tuple[str, str]:
    """Both halves of the queries of all heads."""
    width, matrices = b.hidden_size, how.weight_format
    if spec.query_rank is not None:
        low = project(b, "attn.q_low", h, (spec.query_rank, width), matrices, has_bias=spec.bias)
        low = _norm(b, "attn.q_low_norm", spec.norm, low, spec.query_rank)
        h, width = b("attn.q_low_operand", operand, low, to=how.operand), spec.query_rank
    nope, turning = (
        project(b, f"attn.{name}", h, (spec.num_heads * dim, width), matrices, has_bias=False)
        for name, dim in (("q_nope", spec.nope_dim), ("q_rope", spec.rope_dim))
    )
    return nope, turning


def _norm(b: Builder, name: str, spec: NormSpec, x: str, width: int) -> str:
    attrs = {"eps": spec.eps, "weight_offset": spec.weight_offset, "kind": spec.kind}
    return b(name, norm, x, b.vector(name, width), None, **attrs)
