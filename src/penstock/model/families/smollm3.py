"""SmolLM3: Llama, every fourth layer without positions (Hugging Face, 2025; NoPE: arXiv:2501.18795)."""

from dataclasses import replace
from typing import Final

from penstock.model.config_reader import ConfigReader
from penstock.model.decoder import MAX_LAYERS, read_sizes
from penstock.model.families.llama import llama_shaped
from penstock.model.family import family
from penstock.model.rope_config import RopeKeys
from penstock.model.spec import LayerSpec, ModelSpec

ROPE: Final = RopeKeys(default_theta=2000000.0)
DEFAULT_KV_HEADS: Final = 4
DEFAULT_INTERVAL: Final = 4


@family("SmolLM3ForCausalLM")
def smollm3(config: ConfigReader) -> ModelSpec:
    config.expect("use_sliding_window", False, why="no checkpoint in circulation has windows")
    config.ignore("sliding_window", "max_window_layers", why="use_sliding_window is off")
    sizes = read_sizes(config, num_kv_heads=DEFAULT_KV_HEADS)
    config.layer_types(sizes.num_layers, "full_attention")
    interval = config.get("no_rope_layer_interval", int, DEFAULT_INTERVAL, most=MAX_LAYERS)
    has_rope = config.flags("no_rope_layers", sizes.num_layers)
    if has_rope is None:
        has_rope = tuple((i + 1) % interval != 0 for i in range(sizes.num_layers))
    has_bias, mlp_bias = (config.get(key, bool, False) for key in ("attention_bias", "mlp_bias"))
    spec = llama_shaped(
        config,
        sizes,
        rope_keys=ROPE,
        qkv_bias=has_bias,
        o_bias=has_bias,
        mlp_bias=mlp_bias,
        ties_by_default=True,
    )

    def layer(plain: LayerSpec, is_placed: bool) -> LayerSpec:
        return plain if is_placed else replace(plain, mixer=replace(plain.attention, rope=None))

    return replace(spec, layers=tuple(map(layer, spec.layers, has_rope)))
