"""OLMo: Llama with a LayerNorm that learns nothing. Groeneveld et al. 2024, arXiv:2402.00838."""

from typing import Final

from penstock.model.config_reader import ConfigReader
from penstock.model.decoder import read_sizes
from penstock.model.families.llama import llama_shaped
from penstock.model.family import family
from penstock.model.spec import ModelSpec, NormSpec

EPS: Final = 1e-5  # no key says it


@family("OlmoForCausalLM")
def olmo(config: ConfigReader) -> ModelSpec:
    config.refuse_if_present("clip_qkv", "queries, keys and values that are clipped are not supported")
    has_bias = config.get("attention_bias", bool, False)
    return llama_shaped(
        config,
        read_sizes(config),
        norm=NormSpec(EPS, kind="layer", has_weight=False),
        qkv_bias=has_bias,
        o_bias=has_bias,
    )
