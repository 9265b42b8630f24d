"""Mistral 7B and Nemo: Llama with a sliding window. Jiang et al. 2023, arXiv:2310.06825."""

from typing import Final

from penstock.model.config_reader import ConfigReader
from penstock.model.families.llama import llama_shaped, read_heads
from penstock.model.family import family
from penstock.model.rope import MAX_ANGLE
from penstock.model.spec import ModelSpec

DEFAULT_WINDOW: Final = 4096  # what a file means that does not say; null means none
DEFAULT_KV_HEADS: Final = 8


@family("MistralForCausalLM")
def mistral(config: ConfigReader) -> ModelSpec:
    window = config.find("sliding_window", int, most=MAX_ANGLE)
    if "sliding_window" not in config:
        window = DEFAULT_WINDOW
    heads = read_heads(config, num_kv_heads=DEFAULT_KV_HEADS)
    return llama_shaped(config, heads, windows=lambda num_layers: (window,) * num_layers)
