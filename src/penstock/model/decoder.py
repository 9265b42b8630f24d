"""What most families read alike: sizes, activations, kinds of layers; and the ModelSpec around their layers.

Called by families/, so that a family holds little but its own differences. Refuses sizes that no model has.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, localcontext
from typing import Any, Final

import numpy as np

from penstock.model.config_reader import ConfigReader
from penstock.model.rope import MAX_ANGLE
from penstock.model.spec import LayerSpec, ModelSpec, MoESpec, NormSpec
from penstock.ops.rounding import to_bfloat16

MAX_LAYERS: Final = 1024
MAX_WIDTH: Final = 1 << 20
MAX_HEADS: Final = 4096
MAX_HEAD_DIM: Final = 1024
MAX_VOCAB: Final = 1 << 24
MAX_EXPERTS: Final = 4096

ACTIVATION_NAMES: Final = {  # in config.json -> ACTIVATIONS of ops/pointwise.py
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu2",
}


@dataclass(frozen=True, slots=True)
class SizeKeys:
    """How a config.json spells its sizes."""

    hidden: str = "hidden_size"
    heads: str = "num_attention_heads"
    kv_heads: str | None = "num_key_value_heads"  # None: as many as heads
    head_dim: str | None = "head_dim"  # None: always hidden / heads
    layers: str = "num_hidden_layers"
    inner: str = "intermediate_size"


HF_SIZES: Final = SizeKeys()


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of a decoder whose layers are all alike."""

    hidden: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_layers: int
    inner: int

    @property
    def heads(self) -> dict[str, Any]:  # Any: `int`, for all that mypy lets a ** through
        """The sizes in an AttentionSpec."""
        return {"num_heads": self.num_heads, "num_kv_heads": self.num_kv_heads, "head_dim": self.head_dim}


def read_sizes(
    config: ConfigReader,
    keys: SizeKeys = HF_SIZES,
    *,
    num_kv_heads: int | None = None,
    head_dim: int | None = None,
    inner: int | None = None,
) -> Sizes:
    """Arguments: the architecture's own defaults. Else heads, hidden / heads, and `inner` must be said."""
    hidden = config.get(keys.hidden, int, most=MAX_WIDTH)
    heads = config.get(keys.heads, int, most=MAX_HEADS)
    kv_heads = num_kv_heads or heads
    if keys.kv_heads is not None:
        kv_heads = config.get(keys.kv_heads, int, kv_heads, most=MAX_HEADS)
        if heads % kv_heads:
            raise config.refuse(keys.kv_heads, f"is {kv_heads}, which does not divide {heads} heads")
    stated = config.find(keys.head_dim, int, most=MAX_HEAD_DIM) if keys.head_dim else None
    width = stated or head_dim
    if width is None:
        if hidden % heads:
            absent = "; head_dim is missing" if keys.head_dim else ""
            raise config.refuse(keys.hidden, f"is {hidden}, which {heads} heads do not divide{absent}")
        width = hidden // heads
    if width % 2:
        raise config.refuse(keys.head_dim or keys.hidden, f"makes heads {width} wide; they must be even")
    layers = config.get(keys.layers, int, most=MAX_LAYERS)
    return Sizes(hidden, heads, kv_heads, width, layers, config.get(keys.inner, int, inner, most=MAX_WIDTH))


def read_norm(config: ConfigReader, key: str = "rms_norm_eps", **kind: Any) -> NormSpec:  # Any: its fields
    """A norm whose eps stands under `key`; `kind` are the fields that the architecture fixes."""
    return NormSpec(eps=config.get(key, float, least=1e-12, most=1), **kind)


def read_activation(config: ConfigReader, key: str = "hidden_act", default: str | None = None) -> str:
    """One of ACTIVATIONS, by the name that config.json has for it."""
    name = config.get(key, str, default)
    if name not in ACTIVATION_NAMES:
        raise config.refuse(key, f"is {name!r}; supported are {', '.join(ACTIVATION_NAMES)}")
    return ACTIVATION_NAMES[name]


def read_layer_kinds(config: ConfigReader, num_layers: int, *, period: int) -> tuple[str, ...]:
    """full_attention or sliding_attention for every layer: said one by one, or by a period that ends full."""
    stated = [config.find(key, int, most=MAX_LAYERS) for key in _PATTERN_KEYS]
    kinds = config.layer_types(num_layers, "full_attention", "sliding_attention")
    if kinds is not None:
        return kinds
    period = next((said for said in stated if said is not None), period)
    return tuple("sliding_attention" if (i + 1) % period else "full_attention" for i in range(num_layers))


_PATTERN_KEYS: Final = ("sliding_window_pattern", "_sliding_window_pattern")


def read_experts(
    config: ConfigReader, size: int, *, count: str = "num_experts", **more: Any
) -> MoESpec:  # Any: further fields
    """Gated experts of width `size`, `num_experts_per_tok` of them for each row."""
    config.ignore("output_router_logits", "router_aux_loss_coef", why="how it was trained")
    num_experts = config.get(count, int, most=MAX_EXPERTS)
    top_k = config.get("num_experts_per_tok", int, most=num_experts)
    if "renormalize" not in more:
        more["renormalize"] = config.get("norm_topk_prob", bool, False)
    return MoESpec(num_experts, top_k, size, **more)


def read_grouped_experts(
    config: ConfigReader, groups: tuple[int, int] | None, *, scale: float = 1.0, **more: Any
) -> MoESpec:  # Any: further fields
    """Experts as DeepSeek spells them: chosen from the best of their groups, some shared by all rows.

    `groups`: by default so many, and so many of them kept; None: they do not count.
    """
    width = config.get("moe_intermediate_size", int, most=MAX_WIDTH)
    num_groups = groups_kept = 1
    if groups is not None:
        num_groups = config.get("n_group", int, groups[0], most=MAX_EXPERTS)
        groups_kept = config.get("topk_group", int, min(groups[1], num_groups), most=num_groups)
    config.ignore("n_group", "topk_group", why="read above, where groups count")
    experts = read_experts(
        config,
        width,
        count="n_routed_experts",
        scale=config.get("routed_scaling_factor", float, scale, least=1e-6, most=1e6),
        num_groups=num_groups,
        groups_kept=groups_kept,
        shared_size=width * config.get("n_shared_experts", int, 1, least=0, most=64),
        **more,
    )
    kept = groups_kept * (experts.num_experts // num_groups)
    if experts.num_experts % num_groups or kept < experts.top_k:
        raise config.refuse(
            "n_group", f"is {num_groups}, which does not divide the experts or leaves too few"
        )
    return experts


def read_first_dense(config: ConfigReader, default: int) -> range:
    """Layers with a plain MLP: the first `first_k_dense_replace`."""
    return range(config.get("first_k_dense_replace", int, default, least=0, most=MAX_LAYERS))


def read_draft_layers(config: ConfigReader) -> int:
    """How many layers after the last guess further tokens: not run here, and not missed."""
    counts = [config.find(key, int, least=0, most=MAX_LAYERS) for key in _DRAFT_KEYS]
    return max((count for count in counts if count is not None), default=1)


_DRAFT_KEYS: Final = ("num_nextn_predict_layers", "num_mtp_layers")


def read_dense_layers(config: ConfigReader, num_layers: int) -> set[int]:
    """Layers with a plain MLP: `mlp_only_layers`, and all but every `decoder_sparse_step`-th."""
    step = config.get("decoder_sparse_step", int, 1, most=MAX_LAYERS)
    dense = config.indices("mlp_only_layers", below=num_layers)
    return {layer for layer in range(num_layers) if layer in dense or (layer + 1) % step}


def with_experts(model: ModelSpec, experts: MoESpec, *, dense: Collection[int] = ()) -> ModelSpec:
    """`model` with experts in the place of the MLP of every layer but `dense`."""
    layers = [
        layer if index in dense else replace(layer, mlp=experts) for index, layer in enumerate(model.layers)
    ]
    return replace(model, layers=tuple(layers))


def rounded_as_stored(config: ConfigReader, value: float) -> float:
    """A constant of the model in the dtype of its checkpoint, as it was trained with."""
    dtype = config.find("torch_dtype", str) or config.find("dtype", str)
    if dtype == "bfloat16":
        return float(to_bfloat16(np.array([value], np.float32))[0])
    return float(np.float16(value)) if dtype == "float16" else value


def alibi_slopes(num_heads: int, dtype: str = "float32") -> tuple[float, ...]:
    """2**(-8 i / n) for head i = 1 .. n, n a power of two; heads beyond it lie between. arXiv:2108.12409."""
    whole = 1 << (num_heads.bit_length() - 1)
    between = [_power_of_two(-16 * i + 8, 2 * whole) for i in range(1, num_heads - whole + 1)]
    slopes = [_power_of_two(-8 * i, whole) for i in range(1, whole + 1)] + between
    rounded = (
        to_bfloat16(np.array(slopes, np.float32)) if dtype == "bfloat16" else np.array(slopes, np.float32)
    )
    return tuple(rounded.tolist())


def _power_of_two(numerator: int, denominator: int) -> float:
    """2 ** (numerator / denominator), without libm."""
    with localcontext() as context:
        context.prec = 40
        return float((Decimal(2).ln() * numerator / denominator).exp())


def read_window(config: ConfigReader, default: int | None = None) -> int | None:
    """`sliding_window`; null means none, absent means `default`."""
    window = config.find("sliding_window", int, most=MAX_ANGLE)
    return window if "sliding_window" in config else default


def make_model(
    config: ConfigReader,
    sizes: Sizes,
    layers: Sequence[LayerSpec],
    *,
    final_norm: NormSpec,
    max_context: int,
    ties_by_default: bool = False,
    **more: Any,  # Any: further fields of ModelSpec
) -> ModelSpec:
    """The model around `layers`; reads the vocabulary and whether the head is tied to the embedding."""
    return ModelSpec(
        hidden_size=sizes.hidden,
        vocab_size=config.get("vocab_size", int, most=MAX_VOCAB),
        layers=tuple(layers),
        final_norm=final_norm,
        max_context=max_context,
        tie_embeddings=config.get("tie_word_embeddings", bool, ties_by_default),
        **more,
    )
