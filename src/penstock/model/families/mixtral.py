"""Mixtral 8x7B and 8x22B: Mistral with two of eight experts for each row. arXiv:2401.04088."""

from dataclasses import replace
from typing import Final

from penstock.model.config_reader import ConfigReader
from penstock.model.decoder import read_experts, read_sizes, read_window, with_experts
from penstock.model.families.llama import llama_shaped
from penstock.model.family import family
from penstock.model.names import HF_LLAMA, experts, stacked_experts, with_layer
from penstock.model.rope_config import RopeKeys
from penstock.model.spec import ModelSpec

BLOCK: Final = "block_sparse_moe"
EXPERTS: Final = experts(f"{BLOCK}.experts", gate="w1", up="w3", down="w2")
NAMES: Final = replace(
    with_layer(HF_LLAMA, {"mlp.router": f"{BLOCK}.gate.weight"}, EXPERTS),
    renamed={".mlp.": f".{BLOCK}."},  # as transformers 5 spells it
    stacked=stacked_experts(f"{BLOCK}.experts", EXPERTS),
)
ROPE: Final = RopeKeys(default_theta=1e6)
DEFAULT_KV_HEADS: Final = 8


@family("MixtralForCausalLM", names=NAMES)
def mixtral(config: ConfigReader) -> ModelSpec:
    config.ignore("router_jitter_noise", why="how it was trained")
    window = read_window(config)
    sizes = read_sizes(config, num_kv_heads=DEFAULT_KV_HEADS)
    model = llama_shaped(config, sizes, windows=lambda n: (window,) * n, rope_keys=ROPE)
    return with_experts(model, read_experts(config, sizes.inner, count="num_local_experts", renormalize=True))
