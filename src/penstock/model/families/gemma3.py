"""Gemma 3: Gemma 2 with qk-norm for the caps, five windowed layers to a full one, each kind its own rope.

arXiv:2503.19786. Checkpoints with an image encoder are gemma3_images.py.
"""

from dataclasses import replace
from typing import Final

from penstock.model.config_reader import ConfigReader
from penstock.model.decoder import make_model, read_layer_kinds, read_norm, read_sizes, read_window
from penstock.model.families.gemma import DEFAULT_HEAD_DIM, embed_scale, refuse_both_directions
from penstock.model.family import family
from penstock.model.names import HF_SANDWICH
from penstock.model.rope_config import RopeKeys, max_context, read_rope
from penstock.model.spec import AttentionSpec, LayerSpec, MLPSpec, ModelSpec

FAR: Final = RopeKeys(default_theta=1e6, default_max_position=131072, layer_type="full_attention")
NEAR: Final = RopeKeys(
    "rope_local_base_freq", scaling=None, default_max_position=131072, layer_type="sliding_attention"
)
DEFAULT_WINDOW: Final = 4096
DEFAULT_KV_HEADS: Final = 4
DEFAULT_SCALAR: Final = 256.0


@family("Gemma3ForCausalLM", names=HF_SANDWICH)
def gemma3(config: ConfigReader) -> ModelSpec:
    config.expect("hidden_activation", "gelu_pytorch_tanh", why="Gemma 3 was trained with it")
    config.expect("attention_bias", False, why="Gemma 3 has no biases")
    config.ignore("cache_implementation", why="the cache is ours")
    refuse_both_directions(config)
    sizes = read_sizes(config, num_kv_heads=DEFAULT_KV_HEADS, head_dim=DEFAULT_HEAD_DIM)
    norm = read_norm(config, weight_offset=1.0)
    far, near = read_rope(config, sizes.head_dim, FAR), read_rope(config, sizes.head_dim, NEAR)
    whole = AttentionSpec(
        **sizes.heads,
        scale=config.get("query_pre_attn_scalar", float, DEFAULT_SCALAR, least=1e-3) ** -0.5,
        rope=far,
        softcap=config.get_or_null("attn_logit_softcapping", float, None),
        qk_norm=norm,
    )
    windowed = replace(whole, rope=near, window=read_window(config, DEFAULT_WINDOW))
    mlp = MLPSpec(sizes.inner, act="gelu_tanh")
    kinds = {
        "full_attention": LayerSpec(whole, mlp, norm, norm_outputs=True),
        "sliding_attention": LayerSpec(windowed, mlp, norm, norm_outputs=True),
    }
    return make_model(
        config,
        sizes,
        [kinds[kind] for kind in read_layer_kinds(config, sizes.num_layers, period=6)],
        final_norm=norm,
        max_context=max_context(config, far),
        ties_by_default=True,
        embed_scale=embed_scale(config, sizes),
        logit_softcap=config.get_or_null("final_logit_softcapping", float, None),
    )
