"""Llama 2 and 3, and every checkpoint of that shape (Yi, SmolLM, TinyLlama, CodeLlama, DeepSeek distillates).

Touvron et al. 2023, arXiv:2302.13971. Grouped queries: Ainslie et al. 2023, arXiv:2305.13245. Mistral, Qwen
and others differ in what they pass to `llama_shaped`.
"""

import math
from collections.abc import Callable
from typing import Any

from penstock.model.config_reader import ConfigReader
from penstock.model.decoder import Sizes, make_model, read_norm, read_sizes
from penstock.model.family import family
from penstock.model.rope_config import WHOLE_HEADS, RopeKeys, max_context, read_rope
from penstock.model.spec import AttentionSpec, LayerSpec, MLPSpec, ModelSpec, NormSpec


def llama_shaped(
    config: ConfigReader,
    sizes: Sizes,
    *,
    windows: Callable[[int], tuple[int | None, ...]] = lambda num_layers: (None,) * num_layers,
    rope_keys: RopeKeys = WHOLE_HEADS,
    qkv_bias: bool = False,
    o_bias: bool = False,
    mlp_bias: bool = False,
    has_qk_norm: bool = False,
    norm: NormSpec | None = None,
    **more: Any,  # Any: further fields of ModelSpec
) -> ModelSpec:
    """What Llama and many others share: RMS norm, rotary GQA, SwiGLU. Arguments are the differences."""
    config.expect("hidden_act", "silu", why="this architecture was only trained with it")
    norm = norm or read_norm(config)
    rope = read_rope(config, sizes.head_dim, rope_keys)

    def layer(window: int | None) -> LayerSpec:
        attention = AttentionSpec(
            **sizes.heads,
            scale=1 / math.sqrt(sizes.head_dim),
            rope=rope,
            window=window,
            qkv_bias=qkv_bias,
            o_bias=o_bias,
            qk_norm=norm if has_qk_norm else None,
        )
        return LayerSpec(attention, MLPSpec(sizes.inner, act="silu", bias=mlp_bias), norm)

    layers = [layer(window) for window in windows(sizes.num_layers)]
    context = max_context(config, rope)
    return make_model(config, sizes, layers, final_norm=norm, max_context=context, **more)


@family("LlamaForCausalLM")
def llama(config: ConfigReader) -> ModelSpec:
    """`attention_bias` and `mlp_bias` put a bias on every projection of their half."""
    config.expect(
        "rope_interleaved", False, why="checkpoints in this format pair dims i and i + head_dim / 2"
    )
    has_bias = config.get("attention_bias", bool, False)
    mlp_bias = config.get("mlp_bias", bool, False)
    return llama_shaped(config, read_sizes(config), qkv_bias=has_bias, o_bias=has_bias, mlp_bias=mlp_bias)
