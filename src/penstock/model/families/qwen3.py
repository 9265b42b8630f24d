"""Qwen3: Qwen2 with a norm on every head of q and k in place of the biases. arXiv:2505.09388."""

from typing import Final

from penstock.model.config_reader import ConfigReader
from penstock.model.decoder import read_sizes
from penstock.model.families.llama import llama_shaped
from penstock.model.families.qwen2 import read_windows
from penstock.model.family import family
from penstock.model.spec import ModelSpec

DEFAULT_HEAD_DIM: Final = 128


@family("Qwen3ForCausalLM")
def qwen3(config: ConfigReader) -> ModelSpec:
    has_bias = config.get("attention_bias", bool, False)
    return llama_shaped(
        config,
        read_sizes(config, head_dim=DEFAULT_HEAD_DIM),
        windows=lambda n: read_windows(config, n),
        qkv_bias=has_bias,
        o_bias=has_bias,
        has_qk_norm=True,
    )
