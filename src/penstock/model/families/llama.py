"""Llama 2 and 3, and every checkpoint of that shape (Yi, SmolLM, TinyLlama, CodeLlama, DeepSeek distillates).

Touvron et al. 2023, arXiv:2302.13971. Grouped queries: Ainslie et al. 2023, arXiv:2305.13245. Mistral and
Qwen differ in what they pass to `llama_shaped`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from penstock.model.config_reader import ConfigReader
from penstock.model.family import family
from penstock.model.rope_config import max_context, read_rope
from penstock.model.spec import AttentionSpec, LayerSpec, MLPSpec, ModelSpec, NormSpec

MAX_LAYERS: Final = 1024
_MAX_WIDTH: Final = 1 << 20
_MAX_HEADS: Final = 4096
_MAX_HEAD_DIM: Final = 1024
_MAX_VOCAB: Final = 1 << 24


@dataclass(frozen=True, slots=True)
class Heads:
    """Sizes of an attention layer."""

    num_heads: int
    num_kv_heads: int
    head_dim: int


def read_heads(
    config: ConfigReader, *, num_kv_heads: int | None = None, head_dim: int | None = None
) -> Heads:
    """Head counts and width. Arguments: the architecture's own defaults, else heads and hidden / heads."""
    hidden = config.get("hidden_size", int, most=_MAX_WIDTH)
    heads = config.get("num_attention_heads", int, most=_MAX_HEADS)
    kv_heads = config.get("num_key_value_heads", int, num_kv_heads or heads, most=_MAX_HEADS)
    if heads % kv_heads:
        raise config.refuse("num_key_value_heads", f"is {kv_heads}, which does not divide {heads} heads")
    width = config.find("head_dim", int, most=_MAX_HEAD_DIM) or head_dim
    if width is None:
        if hidden % heads:
            raise config.refuse(
                "hidden_size", f"is {hidden}, which {heads} heads do not divide; head_dim is missing"
            )
        width = hidden // heads
    if width % 2:
        raise config.refuse("head_dim", f"is {width}; rotary positions need an even head width")
    return Heads(heads, kv_heads, width)


def llama_shaped(
    config: ConfigReader,
    heads: Heads,
    *,
    windows: Callable[[int], tuple[int | None, ...]] = lambda num_layers: (None,) * num_layers,
    qkv_bias: bool = False,
    o_bias: bool = False,
    mlp_bias: bool = False,
    has_qk_norm: bool = False,
) -> ModelSpec:
    """What Llama, Mistral and Qwen share: RMS norm, rotary GQA, SwiGLU. Arguments are the differences."""
    config.expect("hidden_act", "silu", why="this architecture was only trained with it")
    norm = NormSpec(eps=config.get("rms_norm_eps", float, least=1e-12, most=1))
    rope = read_rope(config, heads.head_dim)
    mlp = MLPSpec(config.get("intermediate_size", int, most=_MAX_WIDTH), act="silu", bias=mlp_bias)

    def layer(window: int | None) -> LayerSpec:
        attention = AttentionSpec(
            num_heads=heads.num_heads,
            num_kv_heads=heads.num_kv_heads,
            head_dim=heads.head_dim,
            scale=1 / math.sqrt(heads.head_dim),
            rope=rope,
            window=window,
            qkv_bias=qkv_bias,
            o_bias=o_bias,
            qk_norm=norm if has_qk_norm else None,
        )
        return LayerSpec(attention, mlp, norm)

    num_layers = config.get("num_hidden_layers", int, most=MAX_LAYERS)
    return ModelSpec(
        hidden_size=config.get("hidden_size", int, most=_MAX_WIDTH),
        vocab_size=config.get("vocab_size", int, most=_MAX_VOCAB),
        layers=tuple(layer(window) for window in windows(num_layers)),
        final_norm=norm,
        max_context=max_context(config, rope),
        tie_embeddings=config.get("tie_word_embeddings", bool, False),
    )


@family("LlamaForCausalLM")
def llama(config: ConfigReader) -> ModelSpec:
    """`attention_bias` and `mlp_bias` put a bias on every projection of their half."""
    config.expect(
        "rope_interleaved", False, why="checkpoints in this format pair dims i and i + head_dim / 2"
    )
    has_bias = config.get("attention_bias", bool, False)
    mlp_bias = config.get("mlp_bias", bool, False)
    return llama_shaped(config, read_heads(config), qkv_bias=has_bias, o_bias=has_bias, mlp_bias=mlp_bias)
