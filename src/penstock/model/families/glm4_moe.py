"""GLM-4.5, 4.6 and 4.5-Air: experts chosen as DeepSeek-V3 does, half of each head turns. arXiv:2508.06471."""

from dataclasses import replace
from typing import Final

from penstock.model.config_reader import ConfigReader
from penstock.model.decoder import MAX_EXPERTS, MAX_LAYERS, MAX_WIDTH, read_experts, read_sizes, with_experts
from penstock.model.families.llama import llama_shaped
from penstock.model.family import family
from penstock.model.names import HF_EXPERTS, plain, with_layer
from penstock.model.rope_config import RopeKeys
from penstock.model.spec import ModelSpec

SHARED: Final = plain(**{f"mlp__shared__{p}": f"mlp.shared_experts.{p}_proj" for p in ("gate", "up", "down")})
NAMES: Final = replace(
    with_layer(HF_EXPERTS, {"mlp.correction": "mlp.gate.e_score_correction_bias"}, SHARED),
    # The layer after the last, which drafts: 46 layers of Air, 92 of the others.
    inert=(*HF_EXPERTS.inert, r"model\.layers\.(46|92)\..*"),
)
ROPE: Final = RopeKeys(is_partial=True, default_share=0.5)


@family("Glm4MoeForCausalLM", names=NAMES)
def glm4_moe(config: ConfigReader) -> ModelSpec:
    """A sigmoid scores each expert; a learned correction counts in the choice and not in the weight."""
    config.ignore("num_nextn_predict_layers", "num_mtp_layers", why="layers that draft come after the model")
    sizes = read_sizes(config)
    model = llama_shaped(
        config,
        sizes,
        rope_keys=ROPE,
        qkv_bias=config.get("attention_bias", bool, False),
        has_qk_norm=config.get("use_qk_norm", bool, False),
    )
    width = config.get("moe_intermediate_size", int, most=MAX_WIDTH)
    groups = config.get("n_group", int, 1, most=MAX_EXPERTS)
    experts = read_experts(
        config,
        width,
        count="n_routed_experts",
        renormalize=config.get("norm_topk_prob", bool, True),
        score="sigmoid",
        has_correction=True,
        scale=config.get("routed_scaling_factor", float, 1.0, least=1e-6, most=1e6),
        num_groups=groups,
        groups_kept=config.get("topk_group", int, 1, most=groups),
        shared_size=width * config.get("n_shared_experts", int, 1, least=0, most=64),
    )
    kept = experts.groups_kept * (experts.num_experts // groups)
    if experts.num_experts % groups or kept < experts.top_k:
        raise config.refuse("n_group", f"is {groups}, which does not divide the experts or leaves too few")
    first = config.get("first_k_dense_replace", int, 1, least=0, most=MAX_LAYERS)
    return with_experts(model, experts, dense=range(first))
