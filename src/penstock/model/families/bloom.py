"""BLOOM: ALiBi in place of positions, a norm of the embeddings. arXiv:2211.05100; ALiBi: arXiv:2108.12409."""

import math
from typing import Final

from penstock.model.config_reader import ConfigReader
from penstock.model.decoder import SizeKeys, alibi_slopes, make_model, read_norm, read_sizes
from penstock.model.family import family
from penstock.model.names import Names, fused, plain
from penstock.model.rope import MAX_ANGLE
from penstock.model.spec import AttentionSpec, LayerSpec, MLPSpec, ModelSpec

DEFAULT_CONTEXT: Final = 2048  # what it was trained with; ALiBi itself has no end
NAMES: Final = Names(
    top={
        "embed": "transformer.word_embeddings.weight",
        **plain(embed_norm="transformer.word_embeddings_layernorm", final_norm="transformer.ln_f"),
        "lm_head": "lm_head.weight",
    },
    layer={
        **plain(attn_norm="input_layernorm", mlp_norm="post_attention_layernorm"),
        **fused("self_attention.query_key_value", "attn.q", "attn.k", "attn.v"),
        **plain(attn__o="self_attention.dense", mlp__up="mlp.dense_h_to_4h", mlp__down="mlp.dense_4h_to_h"),
    },
    layer_prefix="transformer.h.{}.",
    is_grouped=True,
    optional_prefix="transformer.",
)


@family("BloomForCausalLM", names=NAMES)
def bloom(config: ConfigReader) -> ModelSpec:
    config.ignore(
        "hidden_dropout", "attention_softmax_in_fp32", "masked_softmax_fusion", why="kernels of others"
    )
    config.ignore("slow_but_exact", "unk_token_id", "bias_dropout_fusion", why="compute nothing")
    config.ignore("n_inner", "offset_alibi", "skip_bias_add", "skip_bias_add_qkv", why="read by no version")
    why = "no checkpoint in circulation has it"
    config.expect("apply_residual_connection_post_layernorm", False, why=why)
    hidden = "n_embed" if "n_embed" in config else "hidden_size"
    config.ignore("hidden_size", why="n_embed, its older name, goes first")
    heads = "n_head" if "n_head" in config else "num_attention_heads"
    inner = 4 * config.get(hidden, int)
    sizes = read_sizes(config, SizeKeys(hidden, heads, None, None, "n_layer", "ffn_hidden_size"), inner=inner)
    norm = read_norm(config, "layer_norm_epsilon", kind="layer", has_bias=True)
    attention = AttentionSpec(
        **sizes.heads,
        scale=1 / math.sqrt(sizes.head_dim),
        slopes=alibi_slopes(sizes.num_heads),
        qkv_bias=True,
        o_bias=True,
    )
    layer = LayerSpec(attention, MLPSpec(sizes.inner, "gelu_tanh", bias=True, is_gated=False), norm)
    return make_model(
        config,
        sizes,
        [layer] * sizes.num_layers,
        final_norm=norm,
        max_context=config.get("seq_length", int, DEFAULT_CONTEXT, most=MAX_ANGLE),
        ties_by_default=True,
        embed_norm=norm,
    )
