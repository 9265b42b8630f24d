"""StableLM: Llama with LayerNorm, a quarter of each head turned; the 12B with one norm for both halves."""

from dataclasses import replace
from typing import Final

from penstock.model.config_reader import ConfigReader
from penstock.model.decoder import read_norm, read_sizes
from penstock.model.families.llama import llama_shaped
from penstock.model.family import family
from penstock.model.names import HF_LLAMA, with_layer
from penstock.model.rope_config import RopeKeys
from penstock.model.spec import LayerSpec, ModelSpec, NormSpec

ROPE: Final = RopeKeys(default_share=0.25, is_partial=True)
NAMES: Final = with_layer(
    HF_LLAMA, {f"attn.{p}_norm": f"self_attn.{p}_layernorm.norms.{{}}.weight" for p in "qk"}
)


@family("StableLmForCausalLM", names=NAMES)
def stablelm(config: ConfigReader) -> ModelSpec:
    config.ignore("hidden_dropout", "rope_pct", why="how it was trained; partial_rotary_factor is read")
    norm = read_norm(config, "layer_norm_eps", kind="layer", has_bias=True)
    has_qk_norm = config.get("qk_layernorm", bool, False)
    is_parallel = config.get("use_parallel_residual", bool, False)

    def layer(plain: LayerSpec) -> LayerSpec:
        qk_norm = NormSpec(norm.eps, kind="layer") if has_qk_norm else None
        attention = replace(plain.attention, qk_norm=qk_norm, qk_norm_over="each_head")
        return replace(plain, mixer=attention, is_parallel=is_parallel, shares_norm=is_parallel)

    sizes = read_sizes(config)
    qkv_bias = config.get("use_qkv_bias", bool, False)
    spec = llama_shaped(config, sizes, norm=norm, rope_keys=ROPE, qkv_bias=qkv_bias)
    return replace(spec, layers=tuple(map(layer, spec.layers)))
