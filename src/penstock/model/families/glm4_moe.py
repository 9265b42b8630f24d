"""GLM-4.5, 4.6 and 4.5-Air: experts chosen as DeepSeek-V3 does, half of each head turns. arXiv:2508.06471."""

from typing import Final

from penstock.model.config_reader import ConfigReader
from penstock.model.decoder import (
    read_draft_layers,
    read_first_dense,
    read_grouped_experts,
    read_sizes,
    with_experts,
)
from penstock.model.families.llama import llama_shaped
from penstock.model.family import family
from penstock.model.names import HF_GROUPED_EXPERTS
from penstock.model.rope_config import RopeKeys
from penstock.model.spec import ModelSpec

ROPE: Final = RopeKeys(is_partial=True, default_share=0.5)


@family("Glm4MoeForCausalLM", names=HF_GROUPED_EXPERTS)
def glm4_moe(config: ConfigReader) -> ModelSpec:
    """A sigmoid scores each expert; a learned correction counts in the choice and not in the weight."""
    sizes = read_sizes(config)
    model = llama_shaped(
        config,
        sizes,
        rope_keys=ROPE,
        qkv_bias=config.get("attention_bias", bool, False),
        has_qk_norm=config.get("use_qk_norm", bool, False),
        num_draft_layers=read_draft_layers(config),
    )
    renormalize = config.get("norm_topk_prob", bool, True)
    experts = read_grouped_experts(
        config, (1, 1), renormalize=renormalize, score="sigmoid", has_correction=True
    )
    return with_experts(model, experts, dense=read_first_dense(config, 1))
