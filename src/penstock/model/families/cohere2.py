"""Command R7B and Command A: Cohere's block with three windowed layers to a full one without positions."""

from dataclasses import replace
from typing import Final

from penstock.model.config_reader import ConfigReader
from penstock.model.decoder import read_layer_kinds, read_sizes, read_window
from penstock.model.families.cohere import NAMES, cohere_shaped
from penstock.model.family import family
from penstock.model.rope_config import RopeKeys
from penstock.model.spec import LayerSpec, ModelSpec

ROPE: Final = RopeKeys(default_max_position=8192, interleaved=True)
DEFAULT_WINDOW: Final = 4096


@family("Cohere2ForCausalLM", names=NAMES)
def cohere2(config: ConfigReader) -> ModelSpec:
    why = "no checkpoint in circulation says otherwise"
    for key in ("use_gated_activation", "use_parallel_block"):
        config.expect(key, True, why=why)
    config.ignore("use_parallel_embedding", why="how it was trained")
    config.expect("use_embedding_sharing", True, why=why)
    config.expect("use_qk_norm", False, why=why)
    config.expect("position_embedding_type", "rope_gptj", why=why)
    config.expect("rotary_pct", 1, 1.0, why=why)
    config.expect("layer_switch", 4, why=why)
    config.expect("order_of_interleaved_layers", "local_attn_first", why=why)
    config.ignore("cache_implementation", why="the cache is ours")
    sizes = read_sizes(config)
    window = read_window(config, DEFAULT_WINDOW)
    kinds = read_layer_kinds(config, sizes.num_layers, period=4)
    spec = cohere_shaped(config, sizes, ROPE)

    def layer(plain: LayerSpec, kind: str) -> LayerSpec:
        windowed = replace(plain.attention, window=window)
        unplaced = replace(plain.attention, rope=None)
        return replace(plain, mixer=windowed if kind == "sliding_attention" else unplaced)

    return replace(spec, layers=tuple(map(layer, spec.layers, kinds)))
