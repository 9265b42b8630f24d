"""GPT-NeoX and Pythia: attention and MLP side by side, part of a head turns. arXiv:2204.06745, 2304.01373."""

import math
from typing import Final

from penstock.model.config_reader import ConfigReader
from penstock.model.decoder import SizeKeys, make_model, read_activation, read_norm, read_sizes
from penstock.model.family import family
from penstock.model.names import Names, fused, plain
from penstock.model.rope_config import RopeKeys, max_context, read_rope
from penstock.model.spec import AttentionSpec, LayerSpec, MLPSpec, ModelSpec

KEYS: Final = SizeKeys(kv_heads=None, head_dim=None)
ROPE: Final = RopeKeys("rotary_emb_base", share="rotary_pct", default_share=0.25, is_partial=True)
NAMES: Final = Names(
    top={
        "embed": "gpt_neox.embed_in.weight",
        **plain(final_norm="gpt_neox.final_layer_norm"),
        "lm_head": "lm_head.weight",
    },
    layer={
        **plain(attn_norm="input_layernorm", mlp_norm="post_attention_layernorm"),
        **fused("attention.query_key_value", "attn.q", "attn.k", "attn.v"),
        **plain(attn__o="attention.dense", mlp__up="mlp.dense_h_to_4h", mlp__down="mlp.dense_4h_to_h"),
    },
    layer_prefix="gpt_neox.layers.{}.",
    inert=(r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),
    is_grouped=True,
    renamed={"embed_out.": "lm_head."},
)


@family("GPTNeoXForCausalLM", names=NAMES)
def gpt_neox(config: ConfigReader) -> ModelSpec:
    config.ignore(
        "hidden_dropout",
        "classifier_dropout",
        "hidden_dropout_prob",
        "gradient_checkpointing",
        why="how it was trained",
    )
    config.ignore("attention_probs_dropout_prob", why="how it was trained")
    config.ignore("is_decoder", why="it always is")
    sizes = read_sizes(config, KEYS)
    norm = read_norm(config, "layer_norm_eps", kind="layer", has_bias=True)
    rope = read_rope(config, sizes.head_dim, ROPE)
    has_bias = config.get("attention_bias", bool, True)
    attention = AttentionSpec(
        **sizes.heads, scale=1 / math.sqrt(sizes.head_dim), rope=rope, qkv_bias=has_bias, o_bias=has_bias
    )
    mlp = MLPSpec(sizes.inner, read_activation(config, default="gelu"), bias=True, is_gated=False)
    is_parallel = config.get("use_parallel_residual", bool, True)
    layer = LayerSpec(attention, mlp, norm, is_parallel=is_parallel)
    context = max_context(config, rope)
    return make_model(config, sizes, [layer] * sizes.num_layers, final_norm=norm, max_context=context)
