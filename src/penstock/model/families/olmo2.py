"""OLMo 2: norms of what a half makes, not of what it reads; one norm over all queries. arXiv:2501.00656."""

from dataclasses import replace

from penstock.model.config_reader import ConfigReader
from penstock.model.decoder import read_sizes
from penstock.model.families.llama import llama_shaped
from penstock.model.family import family
from penstock.model.names import HF_SANDWICH
from penstock.model.spec import LayerSpec, ModelSpec


@family("Olmo2ForCausalLM", names=HF_SANDWICH)
def olmo2(config: ConfigReader) -> ModelSpec:
    has_bias = config.get("attention_bias", bool, False)

    def layer(plain: LayerSpec) -> LayerSpec:
        attention = replace(plain.attention, qk_norm_over="row")
        return replace(plain, attention=attention, norm_inputs=False, norm_outputs=True)

    sizes = read_sizes(config)
    spec = llama_shaped(config, sizes, qkv_bias=has_bias, o_bias=has_bias, has_qk_norm=True)
    return replace(spec, layers=tuple(map(layer, spec.layers)))
