"""OLMo 3: OLMo 2 with three windowed layers to a full one; only full ones stretch their rope. Ai2, 2025."""

from dataclasses import replace
from typing import Final

from penstock.model.config_reader import ConfigReader
from penstock.model.decoder import read_layer_kinds, read_sizes, read_window
from penstock.model.families.olmo2 import olmo2_shaped
from penstock.model.family import family
from penstock.model.names import HF_SANDWICH
from penstock.model.rope_config import RopeKeys, read_rope
from penstock.model.spec import LayerSpec, ModelSpec

FAR: Final = RopeKeys(default_theta=500000.0, layer_type="full_attention")
NEAR: Final = RopeKeys(default_theta=500000.0, scaling=None, layer_type="sliding_attention")
DEFAULT_WINDOW: Final = 4096


@family("Olmo3ForCausalLM", names=HF_SANDWICH)
def olmo3(config: ConfigReader) -> ModelSpec:
    spec = olmo2_shaped(config, FAR)
    near = read_rope(config, read_sizes(config).head_dim, NEAR)
    window = read_window(config, DEFAULT_WINDOW)

    def layer(whole: LayerSpec, kind: str) -> LayerSpec:
        windowed = replace(whole.attention, rope=near, window=window)
        return replace(whole, mixer=windowed) if kind == "sliding_attention" else whole

    kinds = read_layer_kinds(config, spec.num_layers, period=4)
    return replace(spec, layers=tuple(map(layer, spec.layers, kinds)))
