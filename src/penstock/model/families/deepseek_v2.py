"""DeepSeek-V2, V2.5, V2-Lite, Coder-V2: latent attention, experts in groups. arXiv:2405.04434."""

from typing import Any

from penstock.model.config_reader import ConfigReader
from penstock.model.decoder import (
    MAX_HEAD_DIM,
    MAX_WIDTH,
    make_model,
    read_first_dense,
    read_grouped_experts,
    read_norm,
    read_sizes,
    with_experts,
)
from penstock.model.family import family
from penstock.model.names import HF_LATENTS
from penstock.model.rope import attention_scale
from penstock.model.rope_config import RopeKeys, max_context, read_rope
from penstock.model.spec import LatentAttentionSpec, LayerSpec, MLPSpec, ModelSpec, NormSpec

LOW_RANK_EPS = 1e-6  # whatever rms_norm_eps is
METHODS = {"greedy": None, "group_limited_greedy": (8, 3)}  # -> groups, and how many of them are kept


def latent_shaped(config: ConfigReader, *, interleaved: bool = True, **more: Any) -> ModelSpec:  # Any: fields
    """What V2 and V3 share but for the experts: a dense model with latent attention."""
    config.expect("hidden_act", "silu", why="this architecture was only trained with it")
    config.ignore("ep_size", "aux_loss_alpha", "seq_aux", why="how it was trained")
    config.ignore("qk_head_dim", why="the sum of its parts")
    config.expect("moe_layer_freq", 1, why="experts are in every layer after the first dense ones")
    latent, nope, turning, value = (
        config.get(key, int, default, most=most)
        for key, default, most in (
            ("kv_lora_rank", 512, MAX_WIDTH),
            ("qk_nope_head_dim", 128, MAX_HEAD_DIM),
            ("qk_rope_head_dim", 64, MAX_HEAD_DIM),
            ("v_head_dim", 128, MAX_HEAD_DIM),
        )
    )
    sizes = read_sizes(config, head_dim=turning)
    if sizes.num_kv_heads != sizes.num_heads:
        raise config.refuse(
            "num_key_value_heads", "differs from num_attention_heads, but all read one latent"
        )
    norm, rope = read_norm(config), read_rope(config, turning, RopeKeys(interleaved=interleaved))
    attention = LatentAttentionSpec(
        num_heads=sizes.num_heads,
        latent_dim=latent,
        nope_dim=nope,
        rope_dim=turning,
        value_dim=value,
        scale=(nope + turning) ** -0.5 * attention_scale(rope),
        norm=NormSpec(LOW_RANK_EPS),
        rope=rope,
        query_rank=config.get_or_null("q_lora_rank", int, 1536, least=1, most=MAX_WIDTH),
        bias=config.get("attention_bias", bool, False),
    )
    layers = [LayerSpec(attention, MLPSpec(sizes.inner), norm)] * sizes.num_layers
    return make_model(config, sizes, layers, final_norm=norm, max_context=max_context(config, rope), **more)


@family("DeepseekV2ForCausalLM", names=HF_LATENTS, has_own_code=True)
def deepseek_v2(config: ConfigReader) -> ModelSpec:
    """A softmax over all experts; a group is as good as its best one."""
    config.expect("mlp_bias", False, why="no published checkpoint has it")
    config.expect("scoring_func", "softmax", why="this architecture was only trained with it")
    config.expect("norm_topk_prob", False, why="transformers does not read it here, so checkpoints say so")
    method = config.get("topk_method", str, "greedy")
    if method not in METHODS:
        raise config.refuse("topk_method", f"is {method!r}; supported are {', '.join(METHODS)}")
    model = latent_shaped(config)
    experts = read_grouped_experts(config, METHODS[method], renormalize=False)
    return with_experts(model, experts, dense=read_first_dense(config, 0))
