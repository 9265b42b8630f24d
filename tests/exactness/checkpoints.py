"""Random checkpoints on disk, small or of a real model's size: config, tokenizer and one safetensors file.

Widths are no nice multiples on purpose. Weights keep activations near unit size, so that attention looks at
many tokens and the logits differ in most bits between any two contexts.
"""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from penstock.model.build import build
from penstock.model.family import FAMILIES, read_model
from penstock.model.spec import ModelSpec, MoESpec

TOKENIZER = Path(__file__).parents[1] / "fixtures" / "tokenizers" / "byte_level_llama3"
VOCAB_SIZE = 509  # prime; the tokenizer knows 461 of them
EOS_IDS = (5, 300)
_STORED: dict[str, tuple[str, Any]] = {  # Any: numpy takes these as dtypes
    "float32": ("F32", np.float32),
    "float16": ("F16", np.float16),
    "bfloat16": ("BF16", ml_dtypes.bfloat16),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder of the Llama family. `extra`: further keys of config.json."""

    architecture: str = "LlamaForCausalLM"
    dtype: str = "bfloat16"
    hidden_size: int = 192
    num_layers: int = 2
    num_heads: int = 3
    num_kv_heads: int = 1
    head_dim: int = 64
    intermediate_size: int = 320
    vocab_size: int = VOCAB_SIZE
    max_context: int = 2_560
    tie_embeddings: bool = False
    has_qkv_bias: bool = False
    has_qk_norm: bool = False
    extra: dict[str, Any] = field(default_factory=dict)  # Any: JSON

    def config(self) -> dict[str, Any]:  # Any: JSON
        return {
            "architectures": [self.architecture],
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_context,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10_000.0,
            "tie_word_embeddings": self.tie_embeddings,
            "vocab_size": self.vocab_size,
            "eos_token_id": list(EOS_IDS),
            **self.extra,
        }

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes, as checkpoints have them."""
        hidden, inner = self.hidden_size, self.intermediate_size
        query, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        yield "model.embed_tokens.weight", (self.vocab_size, hidden)
        for layer in range(self.num_layers):
            prefix = f"model.layers.{layer}"
            yield f"{prefix}.input_layernorm.weight", (hidden,)
            yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
            for name, rows in (("q", query), ("k", kv), ("v", kv)):
                yield f"{prefix}.self_attn.{name}_proj.weight", (rows, hidden)
                if self.has_qkv_bias:
                    yield f"{prefix}.self_attn.{name}_proj.bias", (rows,)
            if self.has_qk_norm:
                yield f"{prefix}.self_attn.q_norm.weight", (self.head_dim,)
                yield f"{prefix}.self_attn.k_norm.weight", (self.head_dim,)
            yield f"{prefix}.self_attn.o_proj.weight", (hidden, query)
            yield f"{prefix}.mlp.gate_proj.weight", (inner, hidden)
            yield f"{prefix}.mlp.up_proj.weight", (inner, hidden)
            yield f"{prefix}.mlp.down_proj.weight", (hidden, inner)
        yield "model.norm.weight", (hidden,)
        if not self.tie_embeddings:
            yield "lm_head.weight", (self.vocab_size, hidden)


@dataclass(frozen=True, slots=True)
class OwnShape:
    """A decoder of any family: its config.json, whole. Tensors are those that its own program asks for."""

    architecture: str
    dtype: str
    own: dict[str, Any]  # Any: JSON
    has_mxfp4: bool = False  # experts as gpt-oss stores them

    def config(self) -> dict[str, Any]:  # Any: JSON
        common = {"vocab_size": VOCAB_SIZE, "eos_token_id": list(EOS_IDS), "tie_word_embeddings": False}
        return {"architectures": [self.architecture], **common, **self.own}

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of the parts, fused where the lineage fuses them."""
        spec = read_model(self.config())
        names = FAMILIES[self.architecture].names
        program = build(
            spec, weight_format="bfloat16", head_format="bfloat16", kv_dtype="bfloat16", max_context=8
        )
        fused: dict[str, list[tuple[int, ...]]] = {}
        for use in program.weights.values():
            rows = use.shape[0] // len(use.sources)  # an expert's, where there are experts
            rest = use.shape[1:]
            for source in use.sources:
                name, _, part = names.checkpoint_name(source).partition("[")
                if part.removesuffix("]") in names.turned:
                    heads = spec.layers[0].mixer.num_heads
                    rows, rest = heads * rest[0], (rows // heads,)
                if not part or name not in fused:
                    fused[name] = []
                fused[name].append((rows, *rest))
        for name, shapes in fused.items():
            if self.has_mxfp4 and ".experts." in name:
                continue
            shape = (sum(rows for rows, *_ in shapes), *shapes[0][1:])
            if "{}" in name:
                head_dim = spec.layers[0].attention.head_dim
                for head in range(shape[0] // head_dim):
                    yield name.format(head), (head_dim,)
            elif any(re.fullmatch(p, name) for p, form in names.forms.items() if form == "transposed"):
                yield name, shape[::-1]
            else:
                yield name, shape
        if self.has_mxfp4:
            yield from self._mxfp4_experts(spec)

    @staticmethod
    def _mxfp4_experts(spec: ModelSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
        for index, layer in enumerate(spec.layers):
            assert isinstance(layer.mlp, MoESpec)
            count, inner, hidden = layer.mlp.num_experts, layer.mlp.intermediate_size, spec.hidden_size
            for part, n, k in (("gate_up", 2 * inner, hidden), ("down", hidden, inner)):
                base = f"model.layers.{index}.mlp.experts.{part}_proj"
                yield f"{base}_blocks", (count, n, k // 32, 16)
                yield f"{base}_scales", (count, n, k // 32)
                yield f"{base}_bias", (count, n)


def of_kind(
    architecture: str, dtype: str = "bfloat16", has_mxfp4: bool = False, **own: Any
) -> OwnShape:  # Any: JSON
    return OwnShape(architecture, dtype, own, has_mxfp4)


HF_SIZES = {"hidden_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4}
GATED = HF_SIZES | {"intermediate_size": 224, "max_position_embeddings": 2_560}
RMS = GATED | {"rms_norm_eps": 1e-5, "num_key_value_heads": 2, "head_dim": 40}
LAYER = GATED | {"layer_norm_eps": 1e-5, "num_key_value_heads": 2}
FALCON = HF_SIZES | {"max_position_embeddings": 2_560, "layer_norm_epsilon": 1e-5, "ffn_hidden_size": 224}

SHAPES: dict[str, Shape | OwnShape] = {
    "llama_float32": Shape(dtype="float32"),
    "llama_float16": Shape(dtype="float16", num_heads=6, num_kv_heads=2, head_dim=80, tie_embeddings=True),
    "llama_bfloat16": Shape(head_dim=80, intermediate_size=352),
    "mistral": Shape(architecture="MistralForCausalLM", extra={"sliding_window": 300}),
    "qwen2": Shape(architecture="Qwen2ForCausalLM", num_heads=6, num_kv_heads=2, has_qkv_bias=True),
    "qwen2_windows": Shape(  # two KV groups: a layer that sees everything, two with a window
        architecture="Qwen2ForCausalLM",
        num_layers=3,
        has_qkv_bias=True,
        extra={"use_sliding_window": True, "sliding_window": 150, "max_window_layers": 1},
    ),
    "qwen3": Shape(architecture="Qwen3ForCausalLM", head_dim=80, has_qk_norm=True),
    "gemma": of_kind("GemmaForCausalLM", **RMS),
    "gemma2": of_kind(
        "Gemma2ForCausalLM", **RMS, sliding_window=150, query_pre_attn_scalar=30, final_logit_softcapping=9.0
    ),
    "gemma3": of_kind("Gemma3ForCausalLM", **RMS, sliding_window=150, sliding_window_pattern=2),
    "phi3": of_kind("Phi3ForCausalLM", **RMS, partial_rotary_factor=0.5),
    "gpt2": of_kind(
        "GPT2LMHeadModel",
        n_embd=160,
        n_layer=2,
        n_head=4,
        n_inner=224,
        n_positions=2_560,
        layer_norm_epsilon=1e-5,
    ),
    "opt": of_kind("OPTForCausalLM", **HF_SIZES, ffn_dim=224, max_position_embeddings=2_560),
    "gpt_neox": of_kind("GPTNeoXForCausalLM", **GATED, layer_norm_eps=1e-5, rotary_pct=0.5),
    "falcon_7b": of_kind("FalconForCausalLM", **FALCON),
    "falcon_new": of_kind("FalconForCausalLM", **FALCON, new_decoder_architecture=True, num_kv_heads=2),
    "falcon_rw": of_kind("FalconForCausalLM", **FALCON, alibi=True, multi_query=False, parallel_attn=False),
    "bloom": of_kind(
        "BloomForCausalLM",
        hidden_size=160,
        n_layer=2,
        n_head=5,
        ffn_hidden_size=224,
        seq_length=2_560,
        layer_norm_epsilon=1e-5,
    ),
    "starcoder2": of_kind("Starcoder2ForCausalLM", **GATED, norm_epsilon=1e-5, sliding_window=300),
    "olmo": of_kind("OlmoForCausalLM", **GATED),
    "olmo2": of_kind("Olmo2ForCausalLM", **RMS),
    "olmo3": of_kind(
        "Olmo3ForCausalLM", **RMS, sliding_window=150, layer_types=["sliding_attention", "full_attention"]
    ),
    "granite": of_kind(
        "GraniteForCausalLM",
        **RMS,
        embedding_multiplier=3.0,
        attention_multiplier=0.2,
        logits_scaling=2.0,
        residual_multiplier=0.6,
    ),
    "cohere": of_kind("CohereForCausalLM", **LAYER, use_qk_norm=True),
    "cohere2": of_kind("Cohere2ForCausalLM", **LAYER, sliding_window=150, sliding_window_pattern=2),
    "smollm3": of_kind("SmolLM3ForCausalLM", **RMS, no_rope_layer_interval=2),
    "stablelm": of_kind(
        "StableLmForCausalLM",
        **LAYER,
        partial_rotary_factor=0.4,
        qk_layernorm=True,
        use_parallel_residual=True,
    ),
}


SHAPES |= {
    "mixtral": of_kind("MixtralForCausalLM", **RMS, num_local_experts=5, num_experts_per_tok=2),
    "qwen2_moe": of_kind(
        "Qwen2MoeForCausalLM",
        **RMS,
        num_experts=7,
        num_experts_per_tok=3,
        moe_intermediate_size=80,
        shared_expert_intermediate_size=144,
    ),
    "qwen3_moe": of_kind(
        "Qwen3MoeForCausalLM",
        **RMS,
        num_experts=8,
        num_experts_per_tok=4,
        moe_intermediate_size=96,
        norm_topk_prob=True,
        mlp_only_layers=[0],
    ),
    "glm4_moe": of_kind(
        "Glm4MoeForCausalLM",
        **RMS,
        n_routed_experts=8,
        num_experts_per_tok=3,
        n_group=2,
        topk_group=1,
        moe_intermediate_size=96,
        routed_scaling_factor=1.5,
    ),
    "olmoe": of_kind("OlmoeForCausalLM", **RMS, num_experts=16, num_experts_per_tok=5),
    "gpt_oss": of_kind(
        "GptOssForCausalLM", **RMS, num_local_experts=8, num_experts_per_tok=3, sliding_window=150
    ),
    "gpt_oss_mxfp4": of_kind(
        "GptOssForCausalLM",
        **RMS,
        num_local_experts=8,
        num_experts_per_tok=3,
        sliding_window=150,
        quantization_config={"quant_method": "mxfp4"},
        has_mxfp4=True,
    ),
}


LATENTS = GATED | {
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "rms_norm_eps": 1e-5,
    "v_head_dim": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 96,
    "first_k_dense_replace": 1,
}
SHAPES |= {
    "deepseek_v2": of_kind(  # the published widths of what is cached
        "DeepseekV2ForCausalLM",
        **LATENTS,
        q_lora_rank=None,
        kv_lora_rank=512,
        qk_nope_head_dim=40,
        qk_rope_head_dim=64,
        n_shared_experts=2,
    ),
    "deepseek_v3": of_kind(
        "DeepseekV3ForCausalLM",
        **LATENTS,
        q_lora_rank=72,
        kv_lora_rank=96,
        qk_nope_head_dim=24,
        qk_rope_head_dim=20,
        n_group=4,
        topk_group=2,
        rope_scaling={
            "type": "yarn",
            "factor": 4,
            "original_max_position_embeddings": 640,
            "mscale_all_dim": 1.0,
        },
    ),
}


SHAPES |= {
    "mamba2": of_kind(
        "Mamba2ForCausalLM",
        hidden_size=160,
        num_hidden_layers=2,
        num_heads=5,
        head_dim=64,
        state_size=36,
        n_groups=1,
        layer_norm_epsilon=1e-5,
    ),
    "mamba2_groups": of_kind(
        "Mamba2ForCausalLM",
        hidden_size=160,
        num_hidden_layers=3,
        num_heads=8,
        head_dim=40,
        state_size=24,
        n_groups=4,
        conv_kernel=3,
        use_bias=True,
        layer_norm_epsilon=1e-5,
        time_step_limit=[0.1, 1.0],
    ),
    "opt_350m": of_kind(
        "OPTForCausalLM",
        **HF_SIZES,
        ffn_dim=224,
        max_position_embeddings=2_560,
        do_layer_norm_before=False,
        word_embed_proj_dim=72,
        tie_word_embeddings=True,
    ),
}


def write_checkpoint(folder: Path, shape: Shape | OwnShape, seed: int = 0) -> Path:
    """Write a checkpoint of `shape`; the same seed gives the same bytes. Holds one tensor at a time."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(shape.config()))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, folder / name)
    code, dtype = _STORED[shape.dtype]
    header: dict[str, Any] = {}  # Any: JSON
    end = 0
    for name, dims in shape.tensors():
        own = ("U8", np.uint8) if name.endswith(("_blocks", "_scales")) else (code, dtype)
        begin, end = end, end + int(np.prod(dims)) * np.dtype(own[1]).itemsize
        header[name] = {"dtype": own[0], "shape": dims, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for index, (name, dims) in enumerate(shape.tensors()):
            rng = np.random.default_rng([seed, index])
            if name.endswith("_blocks"):
                file.write(rng.integers(0, 256, dims, np.uint8).tobytes())
            elif name.endswith("_scales"):
                file.write(rng.integers(120, 124, dims, np.uint8).tobytes())
            else:
                file.write(_weights(name, dims, rng).astype(dtype).tobytes())
    return folder


def _weights(name: str, dims: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    values = rng.standard_normal(dims, np.float32)
    if len(dims) == 1:
        return 0.1 * values + (0 if name.endswith("bias") else 1)
    if re.search(r"embed_|embeddings|lm_head|wte|wpe", name):
        return values * np.float32(2 / np.sqrt(dims[-1]))
    return values * np.float32(1.5 / np.sqrt(dims[-1]))
