"""StarCoder2: Llama with LayerNorm, biases and a plain GELU MLP. Lozhkov et al. 2024, arXiv:2402.19173."""

import math
from typing import Final

from penstock.model.config_reader import ConfigReader
from penstock.model.decoder import make_model, read_activation, read_norm, read_sizes, read_window
from penstock.model.family import family
from penstock.model.names import HF_LLAMA, plain, with_layer
from penstock.model.rope_config import max_context, read_rope
from penstock.model.spec import AttentionSpec, LayerSpec, MLPSpec, ModelSpec

DEFAULT_KV_HEADS: Final = 2
NAMES: Final = with_layer(HF_LLAMA, plain(mlp__up="mlp.c_fc", mlp__down="mlp.c_proj"))


@family("Starcoder2ForCausalLM", names=NAMES)
def starcoder2(config: ConfigReader) -> ModelSpec:
    config.ignore("residual_dropout", "embedding_dropout", "activation_function", why="how it was trained")
    config.ignore("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32", why="it always is")
    config.ignore("layer_norm_epsilon", why="norm_epsilon is read")
    config.expect("scale_attn_weights", True, why="scores without a scale are another model's")
    config.expect("mlp_type", "default", why="no other is known")
    config.expect("norm_type", "layer_norm", why="no other is known")
    sizes = read_sizes(config, num_kv_heads=DEFAULT_KV_HEADS)
    norm = read_norm(config, "norm_epsilon", kind="layer", has_bias=True)
    rope = read_rope(config, sizes.head_dim)
    has_bias = config.get("use_bias", bool, True)
    attention = AttentionSpec(
        **sizes.heads,
        scale=1 / math.sqrt(sizes.head_dim),
        rope=rope,
        window=read_window(config),
        qkv_bias=has_bias,
        o_bias=has_bias,
    )
    act = read_activation(config, default="gelu_pytorch_tanh")
    layer = LayerSpec(attention, MLPSpec(sizes.inner, act, bias=has_bias, is_gated=False), norm)
    return make_model(
        config,
        sizes,
        [layer] * sizes.num_layers,
        final_norm=norm,
        max_context=max_context(config, rope),
        ties_by_default=True,
    )
