"""gpt-oss-20b and 120b: every other layer a window, sinks, experts of four bits. arXiv:2508.10925.

The experts of published checkpoints are MXFP4 (weights/schemes/mxfp4.py); a copy in bf16 stores them turned.
"""

from dataclasses import replace
from typing import Final

from penstock.model.config_reader import ConfigReader
from penstock.model.decoder import read_experts, read_sizes, read_window, with_experts
from penstock.model.families.llama import llama_shaped
from penstock.model.family import family
from penstock.model.names import HF_LLAMA, experts, plain, stacked_experts, with_layer
from penstock.model.rope_config import RopeKeys
from penstock.model.spec import LayerSpec, ModelSpec

EXPERTS: Final = experts("mlp.experts", "gate_proj", "up_proj", "down_proj")
STACKED: Final = stacked_experts("mlp.experts", EXPERTS)
NAMES: Final = replace(
    with_layer(HF_LLAMA, EXPERTS, plain(mlp__router="mlp.router"), {"attn.sinks": "self_attn.sinks"}),
    stacked=STACKED
    | stacked_experts("mlp.experts", EXPERTS, "_bias")
    | {f"{name}_blocks": parts for name, parts in STACKED.items()},  # of codes, not turned
    takes_turns=True,
    forms={r".*\.mlp\.experts\.(gate_up|down)_proj": "transposed"},
)
ROPE: Final = RopeKeys(default_theta=150_000.0)
DEFAULT_WINDOW: Final = 128
DEFAULT_HEAD_DIM: Final = 64


@family("GptOssForCausalLM", names=NAMES)
def gpt_oss(config: ConfigReader) -> ModelSpec:
    config.ignore("experts_per_token", "initial_context_length", why="said again by other keys")
    config.expect("swiglu_alpha", 1.702, why="the activation is a fixed one")
    config.expect("swiglu_limit", 7, 7.0, why="the activation is a fixed one")
    sizes = read_sizes(config, num_kv_heads=8, head_dim=DEFAULT_HEAD_DIM)
    window = read_window(config, DEFAULT_WINDOW)
    kinds = config.layer_types(sizes.num_layers, "full_attention", "sliding_attention")
    kinds = kinds or tuple(("sliding_attention", "full_attention")[i % 2] for i in range(sizes.num_layers))
    has_bias = config.get("attention_bias", bool, True)
    model = llama_shaped(
        config,
        sizes,
        windows=lambda _: tuple(window if kind == "sliding_attention" else None for kind in kinds),
        rope_keys=ROPE,
        qkv_bias=has_bias,
        o_bias=has_bias,
    )

    def layer(plain: LayerSpec) -> LayerSpec:
        return replace(plain, mixer=replace(plain.attention, sinks=True))

    model = replace(model, layers=tuple(map(layer, model.layers)))
    chosen = read_experts(
        config, sizes.inner, count="num_local_experts", renormalize=False, act="clamped_swiglu",
        score="softmax_chosen", router_bias=True, bias=True,
    )  # fmt: skip
    return with_experts(model, chosen)
