"""Mamba-2 and Codestral Mamba: states in the place of attention, no MLP. Dao & Gu 2024, arXiv:2405.21060."""

import math
from typing import Final

from penstock.model.config_reader import ConfigReader
from penstock.model.decoder import (
    MAX_HEAD_DIM,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_WIDTH,
    Sizes,
    make_model,
    read_norm,
)
from penstock.model.family import family
from penstock.model.names import Names, plain
from penstock.model.spec import LayerSpec, Mamba2Spec, ModelSpec

MAX_CONTEXT: Final = 1 << 20  # a state has no length of its own: where we stop counting
MAX_STATE: Final = 1024
MAX_TAPS: Final = 4
NAMES: Final = Names(
    top={
        "embed": "backbone.embeddings.weight",
        "final_norm": "backbone.norm_f.weight",
        "lm_head": "lm_head.weight",
    },
    layer={
        **plain(attn_norm="norm", mixer__in="mixer.in_proj", mixer__out="mixer.out_proj"),
        **plain(mixer__conv="mixer.conv1d", mixer__gate_norm="mixer.norm"),
        "mixer.dt_bias": "mixer.dt_bias",
        "mixer.a_log": "mixer.A_log",
        "mixer.skip": "mixer.D",
    },
    layer_prefix="backbone.layers.{}.",
    renamed={"backbone.embedding.": "backbone.embeddings."},
)


@family("Mamba2ForCausalLM", names=NAMES)
def mamba2(config: ConfigReader) -> ModelSpec:
    config.ignore("time_step_rank", "time_step_min", "time_step_max", "time_step_floor", why="for training")
    config.ignore("rescale_prenorm_residual", "residual_in_fp32", why="residuals are float32 here, always")
    config.ignore("chunk_size", why="a block of transformers' scan; this one goes position by position")
    config.ignore("rms_norm", "norm_before_gate", why="read by no version of this architecture")
    config.expect("hidden_act", "silu", why="this architecture was only trained with it")
    config.ignore("use_mamba_kernels", why="a hint for other programs")
    hidden = config.get("hidden_size", int, most=MAX_WIDTH)
    heads = config.get("num_heads", int, most=MAX_HEADS)
    head_dim = config.get("head_dim", int, most=MAX_HEAD_DIM)
    expand = config.get("expand", float, 2.0)
    if int(expand * hidden) != heads * head_dim:
        raise config.refuse("expand", f"is {expand:g}, but {heads} heads of {head_dim} are not that wide")
    groups = config.get("n_groups", int, 8, most=MAX_HEADS)
    if heads % groups:
        raise config.refuse("n_groups", f"is {groups}, which does not divide {heads} heads")
    config.expect("intermediate_size", heads * head_dim, why="it is expand times hidden_size")
    norm = read_norm(config, "layer_norm_epsilon")
    mixer = Mamba2Spec(
        heads,
        head_dim,
        config.get("state_size", int, 128, most=MAX_STATE),
        groups,
        config.get("conv_kernel", int, 4, least=2, most=MAX_TAPS),
        norm,
        dt_limit=_dt_limit(config),
        conv_bias=config.get("use_conv_bias", bool, True),
        bias=config.get("use_bias", bool, False),
    )
    layers = config.get("num_hidden_layers", int, most=MAX_LAYERS)
    sizes = Sizes(hidden, heads, heads, head_dim, layers, heads * head_dim)
    blocks = [LayerSpec(mixer, None, norm)] * layers
    return make_model(config, sizes, blocks, final_norm=norm, max_context=MAX_CONTEXT)


def _dt_limit(config: ConfigReader) -> tuple[float, float] | None:
    """Bounds of a step; (0, infinity) bounds nothing."""
    limit = config.interval("time_step_limit", (0.0, math.inf))
    return None if limit == (0.0, math.inf) else limit
