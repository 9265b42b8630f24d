"""Command R: one norm, then attention and MLP side by side; pairs of dims side by side. Cohere, 2024."""

from dataclasses import replace
from typing import Final

from penstock.model.config_reader import ConfigReader
from penstock.model.decoder import Sizes, read_norm, read_sizes
from penstock.model.families.llama import llama_shaped
from penstock.model.family import family
from penstock.model.names import HF_LLAMA
from penstock.model.rope import MAX_ANGLE
from penstock.model.rope_config import RopeKeys
from penstock.model.spec import LayerSpec, ModelSpec

ROPE: Final = RopeKeys(default_theta=500000.0, default_max_position=8192, interleaved=True)
DEFAULT_LOGIT_SCALE: Final = 0.0625
NAMES: Final = replace(HF_LLAMA, forms={r".*\.[qk]_norm\.weight": "flattened"})  # [heads, head_dim]


@family("CohereForCausalLM", names=NAMES)
def cohere(config: ConfigReader) -> ModelSpec:
    return cohere_shaped(config, read_sizes(config), ROPE, has_qk_norm=config.get("use_qk_norm", bool, False))


def cohere_shaped(
    config: ConfigReader, sizes: Sizes, rope: RopeKeys, *, has_qk_norm: bool = False
) -> ModelSpec:
    """What both generations share: one LayerNorm without bias for both halves, and a scale of the logits."""
    has_bias = config.get("attention_bias", bool, False)
    spec = llama_shaped(
        config,
        sizes,
        norm=read_norm(config, "layer_norm_eps", kind="layer"),
        rope_keys=rope,
        qkv_bias=has_bias,
        o_bias=has_bias,
        has_qk_norm=has_qk_norm,
        ties_by_default=True,
        logit_scale=config.get("logit_scale", float, DEFAULT_LOGIT_SCALE, least=1e-6),
    )

    stretched = config.find("model_max_length", int, most=MAX_ANGLE) or 0

    def layer(plain: LayerSpec) -> LayerSpec:
        attention = replace(plain.attention, qk_norm_over="each_head")
        return replace(plain, mixer=attention, is_parallel=True, shares_norm=True)

    layers = tuple(map(layer, spec.layers))
    return replace(spec, layers=layers, max_context=max(spec.max_context, stretched))
