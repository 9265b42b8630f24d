"""OPT: learned positions from row 2 on, LayerNorm, ReLU; Galactica has its shape. arXiv:2205.01068.

opt-350m norms the residual stream itself, and its embedding is half as wide, with a product before the first
layer and one after the last.
"""

import math
from typing import Final

from penstock.model.config_reader import ConfigReader
from penstock.model.decoder import MAX_WIDTH, SizeKeys, make_model, read_activation, read_sizes
from penstock.model.family import family
from penstock.model.names import Names, plain
from penstock.model.rope import MAX_ANGLE
from penstock.model.spec import AttentionSpec, LayerSpec, MLPSpec, ModelSpec, NormSpec, PositionTableSpec

KEYS: Final = SizeKeys(kv_heads=None, head_dim=None, inner="ffn_dim")
OFFSET: Final = 2
EPS: Final = 1e-5  # of torch's LayerNorm; no key says it
NAMES: Final = Names(
    top={
        "embed": "model.decoder.embed_tokens.weight",
        "positions": "model.decoder.embed_positions.weight",
        **plain(final_norm="model.decoder.final_layer_norm"),
        "lm_head": "lm_head.weight",
        "embed_in": "model.decoder.project_in.weight",
        "embed_out": "model.decoder.project_out.weight",
    },
    layer={
        **plain(attn_norm="self_attn_layer_norm", mlp_norm="final_layer_norm"),
        **plain(attn__q="self_attn.q_proj", attn__k="self_attn.k_proj", attn__v="self_attn.v_proj"),
        **plain(attn__o="self_attn.out_proj", mlp__up="fc1", mlp__down="fc2"),
    },
    layer_prefix="model.decoder.layers.{}.",
    optional_prefix="model.",
)


@family("OPTForCausalLM", names=NAMES)
def opt(config: ConfigReader) -> ModelSpec:
    config.ignore("dropout", "activation_dropout", "layerdrop", "init_std", why="how it was trained")
    config.ignore("prefix", why="text that a tokenizer puts first")
    sizes = read_sizes(config, KEYS)
    is_norm_first = config.get("do_layer_norm_before", bool, True)
    embed_size = config.get("word_embed_proj_dim", int, sizes.hidden, most=MAX_WIDTH)
    config.expect("_remove_final_layer_norm", False, why="checkpoints without the last norm are not")
    has_bias = config.get("enable_bias", bool, True)
    has_affine = config.get("layer_norm_elementwise_affine", bool, True)
    norm = NormSpec(EPS, kind="layer", has_weight=has_affine, has_bias=has_affine)
    scale = 1 / math.sqrt(sizes.head_dim)
    attention = AttentionSpec(**sizes.heads, scale=scale, qkv_bias=has_bias, o_bias=has_bias)
    act = read_activation(config, "activation_function", "relu")
    mlp = MLPSpec(sizes.inner, act, bias=has_bias, is_gated=False)
    layer = LayerSpec(attention, mlp, norm, norm_inputs=is_norm_first, norm_sums=not is_norm_first)
    length = config.get("max_position_embeddings", int, most=MAX_ANGLE)
    return make_model(
        config,
        sizes,
        [layer] * sizes.num_layers,
        final_norm=norm,
        max_context=length,
        ties_by_default=True,
        positions=PositionTableSpec(length + OFFSET, OFFSET),
        embed_size=None if embed_size == sizes.hidden else embed_size,
    )
