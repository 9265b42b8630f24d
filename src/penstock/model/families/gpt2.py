"""GPT-2: learned positions, LayerNorm, GELU, matrices stored as [in, out]. Radford et al. 2019."""

import math
from typing import Final

from penstock.model.config_reader import ConfigReader
from penstock.model.decoder import SizeKeys, make_model, read_activation, read_norm, read_sizes
from penstock.model.family import family
from penstock.model.names import Names, fused, plain
from penstock.model.rope import MAX_ANGLE
from penstock.model.spec import AttentionSpec, LayerSpec, MLPSpec, ModelSpec, PositionTableSpec

KEYS: Final = SizeKeys("n_embd", "n_head", None, None, "n_layer", "n_inner")
NAMES: Final = Names(
    top={
        "embed": "transformer.wte.weight",
        "positions": "transformer.wpe.weight",
        **plain(final_norm="transformer.ln_f"),
        "lm_head": "lm_head.weight",
    },
    layer={
        **plain(attn_norm="ln_1", mlp_norm="ln_2", attn__o="attn.c_proj"),
        **plain(mlp__up="mlp.c_fc", mlp__down="mlp.c_proj"),
        **fused("attn.c_attn", "attn.q", "attn.k", "attn.v"),
    },
    layer_prefix="transformer.h.{}.",
    inert=(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",),  # the causal mask
    forms={r".*\.(c_attn|c_proj|c_fc)\.weight": "transposed"},
    optional_prefix="transformer.",
)


@family("GPT2LMHeadModel", names=NAMES)
def gpt2(config: ConfigReader) -> ModelSpec:
    config.ignore("embd_pdrop", "resid_pdrop", "attn_pdrop", "task_specific_params", why="how it was trained")
    for key in ("type", "use_proj", "activation", "proj_to_labels", "first_dropout"):
        config.ignore(f"summary_{key}", why="of a classifier's head")
    config.ignore("_num_labels", "id2label", "label2id", why="of a classifier's head")
    config.ignore("n_special", "predict_special_tokens", "output_past", why="read by no version in use")
    config.ignore("n_ctx", why="the same as n_positions")
    config.expect("scale_attn_weights", True, why="scores without a scale are another model's")
    config.expect("scale_attn_by_inverse_layer_idx", False, why="no checkpoint in circulation does")
    config.ignore("reorder_and_upcast_attn", why="scores are float32 here, always")
    config.expect("add_cross_attention", False, why="there is no encoder to attend to")
    sizes = read_sizes(config, KEYS, inner=4 * config.get("n_embd", int))
    norm = read_norm(config, "layer_norm_epsilon", kind="layer", has_bias=True)
    act = read_activation(config, "activation_function", "gelu_new")
    scale = 1 / math.sqrt(sizes.head_dim)
    attention = AttentionSpec(**sizes.heads, scale=scale, qkv_bias=True, o_bias=True)
    layer = LayerSpec(attention, MLPSpec(sizes.inner, act, bias=True, is_gated=False), norm)
    length = config.get("n_positions", int, 1024, most=MAX_ANGLE)
    return make_model(
        config,
        sizes,
        [layer] * sizes.num_layers,
        final_norm=norm,
        max_context=length,
        ties_by_default=True,
        positions=PositionTableSpec(length),
    )
