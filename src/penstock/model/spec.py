"""The vocabulary of decoders: frozen data, no behaviour. Families write it, `model.build` reads it.

A new combination of what is here is only a family file; a new kind of mixer is a new Spec and its builder.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NormSpec:
    """RMS norm. `weight_offset` is 1.0 where the checkpoint stores weight - 1."""

    eps: float
    weight_offset: float = 0.0


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary positions; what a kind reads is said in model/rope.py. Kinds: ROPE_KINDS there.

    `max_position` is the checkpoint's max_position_embeddings, `original_max_position` the length it
    was first trained at.
    """

    rotary_dim: int
    theta: float
    max_position: int
    kind: str = "default"
    factor: float = 1.0
    original_max_position: int = 0  # 0: not said
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0
    attention_factor: float | None = None  # yarn, longrope; None: the paper's formula
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    short_factor: tuple[float, ...] = ()  # longrope, one per frequency
    long_factor: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Attention of `num_heads` query heads over `num_kv_heads` key and value heads.

    Scores: q k^T * scale, then the soft cap, then ALiBi, each where there is one.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float  # of the scores
    rope: RopeSpec | None = None
    window: int | None = None  # a row at position p reads positions > p - window
    softcap: float | None = None  # scores become softcap * tanh(score / softcap)
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: NormSpec | None = None  # per head, before rope
    sinks: bool = False  # a learned score per query head that takes its part of the softmax and has no value
    slopes: tuple[float, ...] = ()  # ALiBi, per query head: a score gains -slope * distance, after `scale`
    is_causal: bool = True  # False: a row reads its whole request (encoders); a window then counts both ways


@dataclass(frozen=True, slots=True)
class MLPSpec:
    """down(act(gate(x)) * up(x))."""

    intermediate_size: int
    act: str = "silu"  # silu | gelu | gelu_tanh
    bias: bool = False


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    attention: AttentionSpec
    mlp: MLPSpec
    norm: NormSpec


@dataclass(frozen=True, slots=True)
class KVGroupSpec:
    """Layers that keep the same tokens: all of them (`window` None), or the last `window`."""

    layers: tuple[int, ...]
    window: int | None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A decoder, whole. `dtype` is what the checkpoint says it holds; `max_context` what it can attend to."""

    hidden_size: int
    vocab_size: int
    layers: tuple[LayerSpec, ...]
    final_norm: NormSpec
    max_context: int
    tie_embeddings: bool
    dtype: str | None = None  # float32 | float16 | bfloat16; None: config.json does not say
    architecture: str = ""  # as config.json names it; the family's name in FAMILIES

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def kv_groups(self) -> tuple[KVGroupSpec, ...]:
        """Layers by retention, in order of first appearance."""
        groups: dict[int | None, list[int]] = {}
        for index, layer in enumerate(self.layers):
            groups.setdefault(layer.attention.window, []).append(index)
        return tuple(KVGroupSpec(tuple(layers), window) for window, layers in groups.items())
