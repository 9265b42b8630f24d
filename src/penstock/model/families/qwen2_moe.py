"""Qwen1.5-MoE and Qwen2-57B-A14B: Qwen2 with experts, and one that every row reads. arXiv:2407.10671."""

from penstock.model.config_reader import ConfigReader
from penstock.model.decoder import MAX_WIDTH, read_dense_layers, read_experts, read_sizes, with_experts
from penstock.model.families.llama import llama_shaped
from penstock.model.families.qwen2 import read_windows
from penstock.model.family import family
from penstock.model.names import HF_EXPERTS
from penstock.model.spec import ModelSpec


@family("Qwen2MoeForCausalLM", names=HF_EXPERTS)
def qwen2_moe(config: ConfigReader) -> ModelSpec:
    """The shared expert counts as much as a sigmoid of the row says."""
    config.expect("use_sliding_window", False, why="versions of this architecture put it on other layers")
    has_bias = config.get("qkv_bias", bool, True)
    sizes = read_sizes(config)
    model = llama_shaped(config, sizes, windows=lambda n: read_windows(config, n), qkv_bias=has_bias)
    experts = read_experts(
        config,
        config.get("moe_intermediate_size", int, most=MAX_WIDTH),
        shared_size=config.get("shared_expert_intermediate_size", int, most=MAX_WIDTH),
        shared_gate=True,
    )
    return with_experts(model, experts, dense=read_dense_layers(config, sizes.num_layers))
