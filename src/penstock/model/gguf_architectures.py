"""Architectures of GGUF files, as data: which of ours each is, and how its metadata spell config.json.

Read by gguf_config. Keys stand after "<architecture>."; one that is neither here nor there is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

JSON = dict[str, Any]  # Any: what becomes a JSON file

KEYS: Final = {  # key -> key of config.json, of most
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta",
}
EXPERTS: Final = {"expert_count": "num_experts", "expert_used_count": "num_experts_per_tok"}
SOFTCAPS: Final = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "attention.sliding_window": "sliding_window",
}
GELU: Final = {"hidden_activation": "gelu_pytorch_tanh"}
Q_BIAS: Final = "blk.0.attn_q.bias"
GATE_BIAS: Final = "blk.0.ffn_gate.bias"
Q_NORM: Final = "blk.0.attn_q_norm.weight"
LATENT_BIAS: Final = "blk.0.attn_kv_a_mqa.bias"


@dataclass(frozen=True, slots=True)
class Architecture:
    """`name`: ours. `keys`: beside or in the place of KEYS; None: there is no such key in its config.json.

    `said_by`: keys of config.json that are true where this tensor is there. `share`: the key for the share of
    a head that turns. `constants`: what its files do not say.
    """

    name: str
    keys: Mapping[str, str | None] = field(default_factory=dict)
    constants: JSON = field(default_factory=dict)
    said_by: Mapping[str, str] = field(default_factory=dict)
    share: str = ""

    def key(self, own: str) -> str | None:
        """What config.json calls a key of the file; None: nothing."""
        return self.keys[own] if own in self.keys else KEYS.get(own)


_SILU: Final = {"hidden_act": "silu"}
_LLAMA_BIASES: Final = {"attention_bias": Q_BIAS, "mlp_bias": GATE_BIAS}
_LAYER_NORM: Final = "attention.layer_norm_epsilon"
_NO_HEAD_DIM: Final[dict[str, str | None]] = {"attention.key_length": None}
_GEMMA_WINDOWS: Final = SOFTCAPS | {"rope.freq_base_swa": "rope_local_base_freq"}
_LATENTS: Final[dict[str, str | None]] = {
    "attention.head_count_kv": None,  # 1 in newer files, for the latent
    "attention.key_length": None,  # what is cached in newer files; a head's in older ones
    "attention.value_length": None,
    "attention.key_length_mla": None,
    "attention.value_length_mla": None,
    "attention.q_lora_rank": "q_lora_rank",
    "attention.kv_lora_rank": "kv_lora_rank",
    "rope.dimension_count": "qk_rope_head_dim",
    "rope.scaling.yarn_log_multiplier": None,
    "expert_count": "n_routed_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_count": "n_shared_experts",
    "expert_weights_scale": "routed_scaling_factor",
    "expert_weights_norm": "norm_topk_prob",
    "expert_gating_func": None,
    "expert_group_count": "n_group",
    "expert_group_used_count": "topk_group",
    "leading_dense_block_count": "first_k_dense_replace",
}
_LATENTS_UNSAID: Final[JSON] = {  # what a file means that does not say so
    **_SILU,
    "q_lora_rank": None,
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.0,
    "first_k_dense_replace": 0,
}

ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    "llama": Architecture("LlamaForCausalLM", constants=_SILU, said_by=_LLAMA_BIASES),
    "mixtral": Architecture(  # "llama" with experts, as files say
        "MixtralForCausalLM",
        {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"},
        _SILU,
    ),
    "qwen2": Architecture("Qwen2ForCausalLM", constants=_SILU),
    "qwen3": Architecture("Qwen3ForCausalLM", constants=_SILU),
    "qwen2moe": Architecture(
        "Qwen2MoeForCausalLM",
        EXPERTS
        | {"expert_feed_forward_length": "moe_intermediate_size"}
        | {"expert_shared_feed_forward_length": "shared_expert_intermediate_size"},
        _SILU,
    ),
    "qwen3moe": Architecture(
        "Qwen3MoeForCausalLM",
        EXPERTS | {"expert_feed_forward_length": "moe_intermediate_size"},
        _SILU | {"norm_topk_prob": True},
    ),
    "olmoe": Architecture("OlmoeForCausalLM", EXPERTS, _SILU),
    "olmo2": Architecture("Olmo2ForCausalLM", constants=_SILU),
    "gemma": Architecture("GemmaForCausalLM", constants=GELU),
    "gemma2": Architecture("Gemma2ForCausalLM", SOFTCAPS, GELU),
    "gemma3": Architecture("Gemma3ForCausalLM", _GEMMA_WINDOWS, GELU),
    "phi3": Architecture(
        "Phi3ForCausalLM",
        {"attention.sliding_window": "sliding_window"},
        _SILU,
        share="partial_rotary_factor",
    ),
    "granite": Architecture(
        "GraniteForCausalLM",
        {
            "attention.scale": "attention_multiplier",
            "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier",
            "logit_scale": "logits_scaling",
        },
        _SILU,
        _LLAMA_BIASES,
    ),
    "command-r": Architecture(
        "CohereForCausalLM",
        {_LAYER_NORM: "layer_norm_eps", "logit_scale": "logit_scale"},
        _SILU,
        {"use_qk_norm": Q_NORM, "attention_bias": Q_BIAS},
    ),
    "stablelm": Architecture(
        "StableLmForCausalLM",
        {_LAYER_NORM: "layer_norm_eps", "use_parallel_residual": "use_parallel_residual"},
        _SILU,
        {"use_qkv_bias": Q_BIAS, "qk_layernorm": Q_NORM},
        share="partial_rotary_factor",
    ),
    "starcoder2": Architecture(
        "Starcoder2ForCausalLM",
        {_LAYER_NORM: "norm_epsilon", **_NO_HEAD_DIM},
        {"hidden_act": "gelu_pytorch_tanh"},
        {"use_bias": Q_BIAS},
    ),
    "gptneox": Architecture(
        "GPTNeoXForCausalLM",
        {
            _LAYER_NORM: "layer_norm_eps",
            "use_parallel_residual": "use_parallel_residual",
            "rope.freq_base": "rotary_emb_base",
            "attention.head_count_kv": None,
            **_NO_HEAD_DIM,
        },
        {"hidden_act": "gelu"},
        {"attention_bias": "blk.0.attn_qkv.bias"},
        share="rotary_pct",
    ),
    "gpt2": Architecture(
        "GPT2LMHeadModel",
        {
            "embedding_length": "n_embd",
            "block_count": "n_layer",
            "feed_forward_length": "n_inner",
            "attention.head_count": "n_head",
            "attention.head_count_kv": None,
            "context_length": "n_positions",
            _LAYER_NORM: "layer_norm_epsilon",
            **_NO_HEAD_DIM,
        },
        {"activation_function": "gelu_new"},
    ),
    "bloom": Architecture(
        "BloomForCausalLM",
        {
            "block_count": "n_layer",
            "feed_forward_length": "ffn_hidden_size",
            "attention.head_count": "n_head",
            "attention.head_count_kv": None,
            "context_length": "seq_length",
            _LAYER_NORM: "layer_norm_epsilon",
            **_NO_HEAD_DIM,
        },
    ),
    "falcon": Architecture(
        "FalconForCausalLM",
        {
            "feed_forward_length": "ffn_hidden_size",
            "attention.head_count_kv": "num_kv_heads",
            _LAYER_NORM: "layer_norm_epsilon",
            **_NO_HEAD_DIM,
        },
        {"activation": "gelu", "alibi": False, "parallel_attn": True},
        {"bias": "blk.0.attn_qkv.bias"},
    ),
    "deepseek2": Architecture(
        "DeepseekV2ForCausalLM",
        _LATENTS,
        _LATENTS_UNSAID | {"scoring_func": "softmax"},
        {"attention_bias": LATENT_BIAS},
    ),
    "deepseek3": Architecture(  # "deepseek2" whose experts a sigmoid scores, as files say
        "DeepseekV3ForCausalLM",
        _LATENTS,
        _LATENTS_UNSAID | {"scoring_func": "sigmoid", "topk_method": "noaux_tc"},
        {"attention_bias": LATENT_BIAS},
    ),
    "mamba2": Architecture(
        "Mamba2ForCausalLM",
        {
            "feed_forward_length": None,  # 0, as are the heads
            "attention.head_count": None,
            "attention.layer_norm_rms_epsilon": "layer_norm_epsilon",
            "context_length": None,  # a state has none
            "ssm.conv_kernel": "conv_kernel",
            "ssm.inner_size": "intermediate_size",
            "ssm.state_size": "state_size",
            "ssm.time_step_rank": "num_heads",
            "ssm.group_count": "n_groups",
            **_NO_HEAD_DIM,
        },
        _SILU,
        {"use_bias": "blk.0.ssm_in.bias", "use_conv_bias": "blk.0.ssm_conv1d.bias"},
    ),
    "bert": Architecture(
        "BertModel",
        {
            _LAYER_NORM: "layer_norm_eps",
            "attention.causal": "is_decoder",
            "attention.head_count_kv": None,
            **_NO_HEAD_DIM,
        },
        {"hidden_act": "gelu"},
    ),
}
# Read by gguf_config itself, or of no weight: what a vocabulary's size is, the embedding tells.
READ: Final = {
    "attention.value_length",
    "rope.dimension_count",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "vocab_size",
    "tensor_data_layout",
    "pooling_type",
}
