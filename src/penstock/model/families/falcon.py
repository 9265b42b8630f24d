"""Falcon: one key head or a few, attention and MLP side by side, or ALiBi (falcon-rw). arXiv:2311.16867."""

import math
from typing import Final

from penstock.model.config_reader import ConfigReader
from penstock.model.decoder import SizeKeys, alibi_slopes, make_model, read_activation, read_norm, read_sizes
from penstock.model.family import family
from penstock.model.names import Names, fused, plain
from penstock.model.rope_config import RopeKeys, max_context, read_rope
from penstock.model.spec import AttentionSpec, LayerSpec, MLPSpec, ModelSpec

KEYS: Final = SizeKeys(kv_heads="num_kv_heads", head_dim=None, inner="ffn_hidden_size")
ROPE: Final = RopeKeys(default_max_position=2048)
NAMES: Final = Names(
    top={
        "embed": "transformer.word_embeddings.weight",
        **plain(final_norm="transformer.ln_f"),
        "lm_head": "lm_head.weight",
    },
    layer={
        **plain(attn_norm="input_layernorm", mlp_norm="post_attention_layernorm"),
        **fused("self_attention.query_key_value", "attn.q", "attn.k", "attn.v"),
        **plain(attn__o="self_attention.dense", mlp__up="mlp.dense_h_to_4h", mlp__down="mlp.dense_4h_to_h"),
    },
    layer_prefix="transformer.h.{}.",
    inert=(r"transformer\.h\.\d+\.self_attention\.rotary_emb\.inv_freq",),
    is_grouped=True,
    renamed={".ln_attn.": ".input_layernorm.", ".ln_mlp.": ".post_attention_layernorm."},
)


@family("FalconForCausalLM", names=NAMES, has_own_code=True)
def falcon(config: ConfigReader) -> ModelSpec:
    """The slopes of ALiBi are bfloat16 and divided like the scores; products with them are not rounded."""
    config.ignore("hidden_dropout", "ff_factor", why="how it was trained; ffn_hidden_size is read")
    config.expect("apply_residual_connection_post_layernorm", False, why="the code does not read it")
    is_new = config.get("new_decoder_architecture", bool, False)
    one_head = config.get("multi_query", bool, True) and not is_new
    inner = 4 * config.get("hidden_size", int)
    if one_head:
        config.ignore("num_kv_heads", why="multi_query means one")
        sizes = read_sizes(
            config, SizeKeys(kv_heads=None, head_dim=None, inner=KEYS.inner), inner=inner, num_kv_heads=1
        )
    else:
        sizes = read_sizes(config, KEYS, inner=inner)
    norms = config.get("num_ln_in_parallel_attn", int, 2 if is_new else 1, most=2)
    is_parallel = config.get("parallel_attn", bool, True) or is_new
    if norms == 2 and not is_new:
        raise config.refuse("num_ln_in_parallel_attn", "is 2, which only the new decoder architecture has")
    norm = read_norm(config, "layer_norm_epsilon", kind="layer", has_bias=True)
    rope = read_rope(config, sizes.head_dim, ROPE)
    has_bias, has_alibi = (config.get(key, bool, False) for key in ("bias", "alibi"))
    scale = 1 / math.sqrt(sizes.head_dim)
    slopes = alibi_slopes(sizes.num_heads, dtype="bfloat16") if has_alibi else ()
    attention = AttentionSpec(
        **sizes.heads,
        scale=scale,
        rope=None if has_alibi else rope,
        slopes=tuple(slope * scale for slope in slopes),
        qkv_bias=has_bias,
        o_bias=has_bias,
    )
    act = read_activation(config, "activation", "gelu")
    mlp = MLPSpec(sizes.inner, act, bias=has_bias, is_gated=False)
    layer = LayerSpec(attention, mlp, norm, is_parallel=is_parallel, shares_norm=is_parallel and norms == 1)
    return make_model(
        config,
        sizes,
        [layer] * sizes.num_layers,
        final_norm=norm,
        max_context=max_context(config, rope),
        ties_by_default=True,
    )
