"""OLMo 2: norms of what a half makes, not of what it reads; one norm over all queries. arXiv:2501.00656."""

from dataclasses import replace

from penstock.model.config_reader import ConfigReader
from penstock.model.decoder import read_sizes
from penstock.model.families.llama import llama_shaped
from penstock.model.family import family
from penstock.model.names import HF_SANDWICH
from penstock.model.rope_config import WHOLE_HEADS, RopeKeys
from penstock.model.spec import LayerSpec, ModelSpec


@family("Olmo2ForCausalLM", names=HF_SANDWICH)
def olmo2(config: ConfigReader) -> ModelSpec:
    return olmo2_shaped(config, WHOLE_HEADS)


def olmo2_shaped(config: ConfigReader, rope: RopeKeys) -> ModelSpec:
    """What OLMo 2 and 3 share."""
    has_bias = config.get("attention_bias", bool, False)
    spec = llama_shaped(
        config, read_sizes(config), rope_keys=rope, qkv_bias=has_bias, o_bias=has_bias, has_qk_norm=True
    )

    def layer(plain: LayerSpec) -> LayerSpec:
        attention = replace(plain.attention, qk_norm_over="row")
        return replace(plain, mixer=attention, norm_inputs=False, norm_outputs=True)

    return replace(spec, layers=tuple(map(layer, spec.layers)))
