"""Phi-3, Phi-3.5, Phi-4: Llama with fused projections; Phi-4-mini turns part of heads. arXiv:2404.14219."""

from typing import Final

from penstock.model.config_reader import ConfigReader
from penstock.model.decoder import read_sizes, read_window
from penstock.model.families.llama import llama_shaped
from penstock.model.family import family
from penstock.model.names import HF_LLAMA, fused, with_layer
from penstock.model.rope_config import RopeKeys
from penstock.model.spec import ModelSpec

PARTIAL: Final = RopeKeys(is_partial=True)
NAMES: Final = with_layer(
    HF_LLAMA,
    fused("self_attn.qkv_proj", "attn.q", "attn.k", "attn.v"),
    fused("mlp.gate_up_proj", "mlp.gate", "mlp.up"),
)


@family("Phi3ForCausalLM", names=NAMES, has_own_code=True)
def phi3(config: ConfigReader) -> ModelSpec:
    config.ignore("resid_pdrop", "embd_pdrop", why="how it was trained")
    for key in ("full_attn_mod", "interpolate_factor"):
        config.expect(key, 1, why="the code of this architecture does not read it")
    config.expect("attention_bias", False, why="the fused projections of this architecture have no bias")
    config.expect("mlp_bias", False, why="the fused projections of this architecture have no bias")
    config.expect("lm_head_bias", False, why="the head has none")
    window = read_window(config)
    return llama_shaped(config, read_sizes(config), windows=lambda n: (window,) * n, rope_keys=PARTIAL)
