"""Granite 3: Llama with four multipliers, of embeddings, scores, residuals and logits (IBM, 2024)."""

from dataclasses import replace

from penstock.model.config_reader import ConfigReader
from penstock.model.decoder import read_sizes
from penstock.model.families.llama import llama_shaped
from penstock.model.family import family
from penstock.model.spec import LayerSpec, ModelSpec


@family("GraniteForCausalLM")
def granite(config: ConfigReader) -> ModelSpec:
    score_scale, residual_scale, embed_scale, logit_divisor = (
        config.get(key, float, 1.0, least=1e-6)
        for key in ("attention_multiplier", "residual_multiplier", "embedding_multiplier", "logits_scaling")
    )

    def layer(plain: LayerSpec) -> LayerSpec:
        attention = replace(plain.attention, scale=score_scale)
        return replace(plain, mixer=attention, residual_scale=residual_scale)

    has_bias, mlp_bias = (config.get(key, bool, False) for key in ("attention_bias", "mlp_bias"))
    sizes = read_sizes(config)
    spec = llama_shaped(config, sizes, qkv_bias=has_bias, o_bias=has_bias, mlp_bias=mlp_bias)
    layers = tuple(map(layer, spec.layers))
    return replace(spec, layers=layers, embed_scale=embed_scale, logit_scale=1 / logit_divisor)
