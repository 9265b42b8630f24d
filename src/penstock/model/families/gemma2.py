"""Gemma 2: Gemma with norms on both sides, soft caps and a window in every second layer. arXiv:2408.00118."""

from typing import Final

from penstock.model.config_reader import ConfigReader
from penstock.model.decoder import make_model, read_layer_kinds, read_norm, read_sizes, read_window
from penstock.model.families.gemma import DEFAULT_HEAD_DIM, embed_scale, refuse_both_directions
from penstock.model.family import family
from penstock.model.names import HF_SANDWICH
from penstock.model.rope_config import max_context, read_rope
from penstock.model.spec import AttentionSpec, LayerSpec, MLPSpec, ModelSpec

DEFAULT_WINDOW: Final = 4096
DEFAULT_KV_HEADS: Final = 4
DEFAULT_SCALAR: Final = 256.0


@family("Gemma2ForCausalLM", names=HF_SANDWICH)
def gemma2(config: ConfigReader) -> ModelSpec:
    for key in ("hidden_act", "hidden_activation"):
        config.expect(key, "gelu_pytorch_tanh", why="Gemma 2 was trained with it")
    config.expect("attention_bias", False, why="Gemma 2 has no biases")
    config.ignore(
        "cache_implementation", "sliding_window_size", why="the cache is ours; sliding_window is read"
    )
    refuse_both_directions(config)
    sizes = read_sizes(config, num_kv_heads=DEFAULT_KV_HEADS, head_dim=DEFAULT_HEAD_DIM)
    norm = read_norm(config, weight_offset=1.0)
    rope = read_rope(config, sizes.head_dim)
    window = read_window(config, DEFAULT_WINDOW)
    scale = config.get("query_pre_attn_scalar", float, DEFAULT_SCALAR, least=1e-3) ** -0.5
    softcap = config.get_or_null("attn_logit_softcapping", float, 50.0)
    mlp = MLPSpec(sizes.inner, act="gelu_tanh")

    def layer(kind: str) -> LayerSpec:
        own_window = window if kind == "sliding_attention" else None
        attention = AttentionSpec(**sizes.heads, scale=scale, rope=rope, window=own_window, softcap=softcap)
        return LayerSpec(attention, mlp, norm, norm_outputs=True)

    return make_model(
        config,
        sizes,
        [layer(kind) for kind in read_layer_kinds(config, sizes.num_layers, period=2)],
        final_norm=norm,
        max_context=max_context(config, rope),
        ties_by_default=True,
        embed_scale=embed_scale(config, sizes),
        logit_softcap=config.get_or_null("final_logit_softcapping", float, 30.0),
    )
