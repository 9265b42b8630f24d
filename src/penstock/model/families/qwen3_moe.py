"""Qwen3-30B-A3B and 235B-A22B: Qwen3 with experts and none that is shared. arXiv:2505.09388."""

from penstock.model.config_reader import ConfigReader
from penstock.model.decoder import MAX_WIDTH, read_dense_layers, read_experts, with_experts
from penstock.model.families.qwen3 import qwen3
from penstock.model.family import family
from penstock.model.names import HF_EXPERTS
from penstock.model.spec import ModelSpec


@family("Qwen3MoeForCausalLM", names=HF_EXPERTS)
def qwen3_moe(config: ConfigReader) -> ModelSpec:
    config.expect("use_sliding_window", False, why="no checkpoint of this architecture was trained with it")
    model = qwen3(config)
    count = "num_experts" if "num_experts" in config else "num_local_experts"
    experts = read_experts(config, config.get("moe_intermediate_size", int, most=MAX_WIDTH), count=count)
    return with_experts(model, experts, dense=read_dense_layers(config, model.num_layers))
