"""OLMoE-1B-7B: eight of 64 small experts for each row; one norm over all queries. arXiv:2409.02060."""

from dataclasses import replace

from penstock.model.config_reader import ConfigReader
from penstock.model.decoder import read_experts, read_sizes, with_experts
from penstock.model.families.llama import llama_shaped
from penstock.model.family import family
from penstock.model.names import HF_EXPERTS
from penstock.model.spec import LayerSpec, ModelSpec


@family("OlmoeForCausalLM", names=HF_EXPERTS)
def olmoe(config: ConfigReader) -> ModelSpec:
    config.refuse_if_present("clip_qkv", "queries and keys are not clipped here; no published file asks it")
    has_bias = config.get("attention_bias", bool, False)
    sizes = read_sizes(config)
    model = llama_shaped(config, sizes, qkv_bias=has_bias, o_bias=has_bias, has_qk_norm=True)

    def layer(plain: LayerSpec) -> LayerSpec:
        return replace(plain, mixer=replace(plain.attention, qk_norm_over="row"))

    model = replace(model, layers=tuple(map(layer, model.layers)))
    return with_experts(model, read_experts(config, sizes.inner))
