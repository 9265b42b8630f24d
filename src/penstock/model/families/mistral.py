"""Mistral 7B and Nemo: Llama with a sliding window. Jiang et al. 2023, arXiv:2310.06825."""

from typing import Final

from penstock.model.config_reader import ConfigReader
from penstock.model.decoder import read_sizes, read_window
from penstock.model.families.llama import llama_shaped
from penstock.model.family import family
from penstock.model.spec import ModelSpec

DEFAULT_WINDOW: Final = 4096  # what a file means that does not say; null means none
DEFAULT_KV_HEADS: Final = 8


@family("MistralForCausalLM")
def mistral(config: ConfigReader) -> ModelSpec:
    window = read_window(config, DEFAULT_WINDOW)
    sizes = read_sizes(config, num_kv_heads=DEFAULT_KV_HEADS)
    return llama_shaped(config, sizes, windows=lambda num_layers: (window,) * num_layers)
