"""DeepSeek-V3, R1, Kimi-K2, Moonlight: V2, but a sigmoid scores each expert. arXiv:2412.19437."""

from penstock.model.config_reader import ConfigReader
from penstock.model.decoder import read_draft_layers, read_first_dense, read_grouped_experts, with_experts
from penstock.model.families.deepseek_v2 import latent_shaped
from penstock.model.family import family
from penstock.model.names import HF_LATENTS
from penstock.model.spec import ModelSpec


@family("DeepseekV3ForCausalLM", names=HF_LATENTS, has_own_code=True)
def deepseek_v3(config: ConfigReader) -> ModelSpec:
    """A learned correction counts in the choice alone; a group is as good as its two best experts."""
    config.expect("scoring_func", "sigmoid", why="this architecture was only trained with it")
    config.expect("topk_method", "noaux_tc", why="this architecture was only trained with it")
    model = latent_shaped(
        config,
        interleaved=config.get("rope_interleave", bool, True),
        num_draft_layers=read_draft_layers(config),
    )
    experts = read_grouped_experts(
        config,
        (8, 4),
        scale=2.5,
        renormalize=config.get("norm_topk_prob", bool, True),
        score="sigmoid",
        has_correction=True,
    )
    return with_experts(model, experts, dense=read_first_dense(config, 3))
