"""The tiny models of make_parity: one for every family, and for every kind of rope and block it comes in."""

from typing import Any

import transformers as hf

SMALL = {
    "vocab_size": 304,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
SMALLER = SMALL | {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 96}


def longrope_factors(pairs: int) -> dict[str, list[float]]:
    short = [round(1 + 0.02 * i, 4) for i in range(pairs)]
    return {"short_factor": short, "long_factor": [round(1 + 0.3 * i, 4) for i in range(pairs)]}


# What every family below says of itself, beside its own; the keys are those of its config.
TINY: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
MLP: dict[str, Any] = {"intermediate_size": 80}
ROTARY: dict[str, Any] = {"max_position_embeddings": 512}
GQA: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24}
RMS: dict[str, Any] = MLP | ROTARY | {"rms_norm_eps": 3e-5}
LAYER: dict[str, Any] = MLP | ROTARY | {"layer_norm_eps": 3e-5}
FALCON: dict[str, Any] = ROTARY | {"layer_norm_epsilon": 3e-5, "ffn_hidden_size": 80}


def rope(theta: float, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta} | more}


# name -> (config class, its own arguments, prompt length)
TINY_MODELS: dict[str, tuple[Any, dict[str, Any], int]] = {
    "gemma": (hf.GemmaConfig, RMS | GQA | rope(1e4), 40),
    "gemma2": (
        hf.Gemma2Config,
        RMS
        | GQA
        | rope(1e4)
        | {
            "query_pre_attn_scalar": 20,
            "sliding_window": 30,
            "attn_logit_softcapping": 4.0,
            "final_logit_softcapping": 9.0,
        },
        60,
    ),
    "gemma3": (
        hf.Gemma3TextConfig,
        RMS
        | GQA
        | {
            "num_hidden_layers": 3,
            "query_pre_attn_scalar": 30,
            "sliding_window": 30,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
        60,
    ),
    "phi3": (hf.Phi3Config, RMS | {"sliding_window": 50} | rope(1e4), 70),
    "phi4_mini": (
        hf.Phi3Config,
        RMS
        | {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "hidden_size": 64,
            "original_max_position_embeddings": 128,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.75,
                "original_max_position_embeddings": 128,
                **longrope_factors(6),
            },
        },
        90,
    ),
    "gpt2": (hf.GPT2Config, {"n_positions": 300, "n_inner": 80, "layer_norm_epsilon": 3e-5}, 40),
    "opt": (hf.OPTConfig, {"max_position_embeddings": 300, "ffn_dim": 80, "word_embed_proj_dim": 48}, 40),
    "opt_350m": (
        hf.OPTConfig,
        {"max_position_embeddings": 300, "ffn_dim": 80, "word_embed_proj_dim": 32}
        | {"do_layer_norm_before": False},
        40,
    ),
    "pythia": (hf.GPTNeoXConfig, LAYER | {"hidden_size": 96} | rope(1e4, partial_rotary_factor=0.25), 40),
    "gpt_neox_sequential": (
        hf.GPTNeoXConfig,
        LAYER
        | {"use_parallel_residual": False, "attention_bias": False, "tie_word_embeddings": True}
        | rope(1e4, partial_rotary_factor=1.0),
        40,
    ),
    "falcon_7b": (hf.FalconConfig, FALCON | rope(1e4), 40),
    "falcon_new": (
        hf.FalconConfig,
        FALCON
        | {"new_decoder_architecture": True, "num_attention_heads": 4, "num_kv_heads": 2, "hidden_size": 64}
        | rope(1e4),
        40,
    ),
    # Heads and lengths such that slopes and their products are bfloat16 values: transformers rounds them.
    "falcon_rw": (
        hf.FalconConfig,
        FALCON
        | {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}
        | {"num_attention_heads": 4, "hidden_size": 64},
        40,
    ),
    "bloom": (
        hf.BloomConfig,
        {"hidden_size": 48, "n_layer": 2, "n_head": 6, "layer_norm_epsilon": 3e-5},
        40,
    ),
    "starcoder2": (
        hf.Starcoder2Config,
        MLP
        | ROTARY
        | {"norm_epsilon": 3e-5, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64}
        | {"sliding_window": 40}
        | rope(1e4),
        60,
    ),
    "olmo": (hf.OlmoConfig, MLP | ROTARY | rope(1e4), 40),
    "olmo2": (
        hf.Olmo2Config,
        RMS | {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64} | rope(5e5),
        40,
    ),
    "olmo3": (
        hf.Olmo3Config,
        RMS
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64, "sliding_window": 30}
        | {"layer_types": ["sliding_attention", "full_attention"]}
        | {
            "rope_parameters": {
                "full_attention": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 5e5}
                | {"original_max_position_embeddings": 128},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
            },
        },
        60,
    ),
    "granite": (
        hf.GraniteConfig,
        RMS
        | rope(1e4)
        | {
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.6,
            "logits_scaling": 2.5,
        },
        40,
    ),
    "command_r": (hf.CohereConfig, LAYER | {"logit_scale": 0.25} | rope(1e4), 40),
    "command_r_plus": (
        hf.CohereConfig,
        LAYER
        | {"use_qk_norm": True, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64}
        | rope(1e4),
        40,
    ),
    "command_r7b": (
        hf.Cohere2Config,
        LAYER
        | {"num_hidden_layers": 4, "sliding_window": 30, "logit_scale": 0.25, "intermediate_size": 48}
        | rope(1e4),
        60,
    ),
    "smollm3": (
        hf.SmolLM3Config,
        RMS
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64}
        | {"no_rope_layer_interval": 2}
        | rope(5e6),
        40,
    ),
    "stablelm": (
        hf.StableLmConfig,
        LAYER
        | {"num_key_value_heads": 3, "use_qkv_bias": True, "hidden_size": 96}
        | rope(1e4, partial_rotary_factor=0.25),
        40,
    ),
    "stablelm_12b": (
        hf.StableLmConfig,
        LAYER
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64}
        | {"qk_layernorm": True, "use_parallel_residual": True}
        | rope(1e4, partial_rotary_factor=0.25),
        40,
    ),
}

# Widths of experts are whole panels of the native kernels: multiples of 32 and 16.
EXPERTS: dict[str, Any] = ROTARY | {"rms_norm_eps": 3e-5, "hidden_size": 64, "num_attention_heads": 4}
EXPERTS |= {"num_key_value_heads": 2, "vocab_size": 112}
MIXTURES: dict[str, tuple[Any, dict[str, Any], int]] = {
    "mixtral": (
        hf.MixtralConfig,
        EXPERTS | {"intermediate_size": 48, "num_local_experts": 5, "num_experts_per_tok": 2} | rope(1e6),
        40,
    ),
    "qwen2_moe": (
        hf.Qwen2MoeConfig,
        EXPERTS
        | {"intermediate_size": 80, "num_experts": 6, "num_experts_per_tok": 2, "num_hidden_layers": 3}
        | {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 64, "mlp_only_layers": [1]}
        | rope(1e6),
        40,
    ),
    "qwen3_moe": (
        hf.Qwen3MoeConfig,
        EXPERTS
        | {"head_dim": 24, "num_experts": 8, "num_experts_per_tok": 4, "moe_intermediate_size": 32}
        | {"norm_topk_prob": True}
        | rope(1e6),
        40,
    ),
    "glm4_moe": (
        hf.Glm4MoeConfig,
        EXPERTS
        | {"head_dim": 32, "use_qk_norm": True, "attention_bias": True, "intermediate_size": 80}
        | {"n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2}
        | {"moe_intermediate_size": 32, "routed_scaling_factor": 0.75}
        | rope(1e4, partial_rotary_factor=0.5),
        40,
    ),
    "gpt_oss": (
        hf.GptOssConfig,
        EXPERTS
        | {"head_dim": 16, "intermediate_size": 32, "num_local_experts": 5, "num_experts_per_tok": 3}
        | {"sliding_window": 24, "hidden_size": 32}
        | rope(
            1.5e5,
            rope_type="yarn",
            factor=8.0,
            original_max_position_embeddings=64,
            beta_fast=32.0,
            beta_slow=1.0,
            truncate=False,
        ),
        72,
    ),
    "olmoe": (
        hf.OlmoeConfig,
        EXPERTS | {"intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 3} | rope(1e4),
        40,
    ),
}

# Heads of latents, too, are whole panels.
LATENTS: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 3e-5,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 8,
    "v_head_dim": 32,
    "n_routed_experts": 8,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}
YARN = {"original_max_position_embeddings": 64, "factor": 8.0, "beta_fast": 4.0}
LATENT_MODELS: dict[str, tuple[Any, dict[str, Any], int]] = {
    "deepseek_v2": (
        hf.DeepseekV2Config,
        LATENTS
        | {"q_lora_rank": 40, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
        | {"num_experts_per_tok": 3, "n_shared_experts": 1, "routed_scaling_factor": 3.0}
        | {"attention_bias": True}
        | rope(1e4, rope_type="yarn", mscale=0.7, mscale_all_dim=1.2, **YARN),
        70,
    ),
    "deepseek_v2_lite": (
        hf.DeepseekV2Config,
        LATENTS
        | {"q_lora_rank": None, "num_experts_per_tok": 2, "n_shared_experts": 2}
        | rope(1e4, rope_type="yarn", mscale=0.707, mscale_all_dim=0.707, **YARN),
        70,
    ),
    "deepseek_v3": (
        hf.DeepseekV3Config,
        LATENTS
        | {"q_lora_rank": 40, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 4}
        | {"n_shared_experts": 2, "routed_scaling_factor": 0.6}
        | rope(1e4, rope_type="yarn", mscale=1.0, mscale_all_dim=1.0, **YARN),
        70,
    ),
}

# Prompts that end within a block of transformers' scan, and go over several; z, x, b and c of odd widths.
MAMBA: dict[str, Any] = {
    "vocab_size": 112,
    "num_hidden_layers": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "layer_norm_epsilon": 3e-5,
    "chunk_size": 16,
}
STATES: dict[str, tuple[Any, dict[str, Any], int]] = {
    "mamba2": (
        hf.Mamba2Config,
        {"hidden_size": 48, "num_heads": 4, "head_dim": 24, "state_size": 20, "n_groups": 1},
        70,
    ),
    "mamba2_groups": (
        hf.Mamba2Config,
        {"hidden_size": 64, "num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 2}
        | {"use_bias": True, "use_conv_bias": False, "conv_kernel": 3, "time_step_limit": (0.3, 1.5)}
        | {"tie_word_embeddings": True},
        45,
    ),
}

# name -> (config class, its arguments, prompt length, max_context)
MODELS: dict[str, tuple[Any, dict[str, Any], int, int]] = {
    "llama2": (hf.LlamaConfig, SMALL | {"num_key_value_heads": 4}, 48, 512),
    "llama3": (
        hf.LlamaConfig,
        SMALL
        | {
            "hidden_size": 96,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
        96,
        512,
    ),
    "llama_linear": (
        hf.LlamaConfig,
        SMALLER | {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
        64,
        512,
    ),
    "llama_dynamic": (
        hf.LlamaConfig,
        SMALLER
        | {
            "max_position_embeddings": 128,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
        },
        96,
        512,
    ),
    "llama_yarn": (
        hf.LlamaConfig,
        SMALLER
        | {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 128,
            }
        },
        96,
        512,
    ),
    "llama_longrope": (
        hf.LlamaConfig,
        SMALLER
        | {
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 128,
                **longrope_factors(16),
            }
        },
        96,
        512,
    ),
    "mistral": (hf.MistralConfig, SMALL | {"sliding_window": 40}, 150, 512),
    "qwen2": (hf.Qwen2Config, SMALL | {"num_hidden_layers": 3, "intermediate_size": 96}, 80, 512),
    "qwen3": (
        hf.Qwen3Config,
        SMALL | {"head_dim": 64, "num_attention_heads": 2, "num_key_value_heads": 1},
        80,
        512,
    ),
    "smollm2": (
        hf.LlamaConfig,
        SMALL
        | {
            "hidden_size": 96,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "num_hidden_layers": 3,
            "tie_word_embeddings": True,
        },
        200,
        512,
    ),
    **{name: (kind, TINY | own, length, 512) for name, (kind, own, length) in TINY_MODELS.items()},
    **{name: (kind, TINY | own, length, 512) for name, (kind, own, length) in MIXTURES.items()},
    **{name: (kind, TINY | own, length, 512) for name, (kind, own, length) in LATENT_MODELS.items()},
    **{name: (kind, MAMBA | own, length, 512) for name, (kind, own, length) in STATES.items()},
}
