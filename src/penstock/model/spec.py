"""The vocabulary of decoders: frozen data, no behaviour. Families write it, `model.build` reads it.

A new combination of what is here is only a family file; a new kind of mixer is a new Spec and its builder.
"""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class NormSpec:
    """RMS norm or LayerNorm. `weight_offset` is 1.0 where the checkpoint stores weight - 1."""

    eps: float
    weight_offset: float = 0.0
    kind: str = "rms"  # rms | layer (which subtracts the mean first)
    has_weight: bool = True
    has_bias: bool = False


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
    interleaved: bool = False  # pairs are (2i, 2i + 1), not (i, i + rotary_dim / 2)


@dataclass(frozen=True, slots=True)
class PositionTableSpec:
    """Learned positions: row `position + offset` of a table is added to the token's embedding."""

    num_rows: int
    offset: int = 0


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
    qk_norm: NormSpec | None = None  # of queries and keys, before rope
    qk_norm_over: str = "head"  # one weight for all heads | each_head: a weight for each | row: all at once
    sinks: bool = False  # a learned score per query head that takes its part of the softmax and has no value
    slopes: tuple[float, ...] = ()  # ALiBi, per query head: a score gains -slope * distance, after `scale`
    is_causal: bool = True  # False: a row reads its whole request (encoders); a window then counts both ways


@dataclass(frozen=True, slots=True)
class LatentAttentionSpec:
    """Attention whose keys and values are products of one latent per token (MLA, arXiv:2405.04434).

    The cache holds the latent, normed, and beside it a key of `rope_dim` that turns and that all heads share.
    Per head: query [nope | rope], key [k_up latent | shared key], value v_up latent. With `query_rank`,
    queries are products of a normed latent of their own.
    """

    num_heads: int
    latent_dim: int
    nope_dim: int  # of a query and a key, without positions
    rope_dim: int
    value_dim: int
    scale: float  # of the scores
    norm: NormSpec  # of the low ranks
    rope: RopeSpec
    query_rank: int | None = None
    bias: bool = False  # of the products that make latents, and of the output

    num_kv_heads: ClassVar[int] = 1
    window: ClassVar[int | None] = None
    is_causal: ClassVar[bool] = True

    @property
    def head_dim(self) -> int:
        """What the cache holds of a token: all heads read the same."""
        return self.latent_dim + self.rope_dim


@dataclass(frozen=True, slots=True)
class Mamba2Spec:
    """A state-space mixer: `num_heads` heads of a state [head_dim, state_size] each. arXiv:2405.21060.

        z, xbc, dt = in(h);  x, b, c = silu(conv(xbc));  dt = clamp(softplus(dt + bias))
        state = exp(-dt e^a) state + dt x b^T;  y = state c + d x;  out(norm(y * silu(z)))

    A head reads the b and c of its group, and the norm is over each group's heads.
    """

    num_heads: int
    head_dim: int
    state_size: int
    num_groups: int
    conv_size: int  # positions that the convolution sees, its own among them
    norm: NormSpec
    dt_limit: tuple[float, float] | None = None
    conv_bias: bool = True
    bias: bool = False  # of the products in and out

    rope: ClassVar[RopeSpec | None] = None
    window: ClassVar[int | None] = None
    is_causal: ClassVar[bool] = True

    @property
    def width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def conv_width(self) -> int:
        """Channels of the convolution: x, b and c."""
        return self.width + 2 * self.num_groups * self.state_size


@dataclass(frozen=True, slots=True)
class MLPSpec:
    """down(act(gate(x)) * up(x)), or down(act(up(x))) where nothing gates."""

    intermediate_size: int
    act: str = "silu"  # ACTIVATIONS or, where it gates, GATES of ops/pointwise.py
    bias: bool = False
    is_gated: bool = True


@dataclass(frozen=True, slots=True)
class MoESpec:
    """The sum of `top_k` of `num_experts` gated MLPs, chosen and weighted by a router (ops.moe).

    A shared expert, of `shared_size`, is added for every row; with `shared_gate`, times sigmoid of one more
    product of the row.
    """

    num_experts: int
    top_k: int
    intermediate_size: int  # of each expert
    act: str = "silu"
    score: str = "softmax"  # softmax | sigmoid | softmax_chosen
    renormalize: bool = False  # chosen weights to a sum of 1
    scale: float = 1.0  # of the weights
    has_correction: bool = False  # a bias that counts in the choice alone
    num_groups: int = 1  # experts are chosen from the `groups_kept` best groups
    groups_kept: int = 1
    router_bias: bool = False
    bias: bool = False  # of the experts' products
    shared_size: int = 0  # 0: none
    shared_gate: bool = False


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """x + mixer(norm(x)), then x + mlp(norm(x)); norms of inputs, of outputs, of both, or of sums.

    Parallel: x + mixer(norm(x)) + mlp(norm(x)), by two norms or one. What is added to x is multiplied
    by `residual_scale` first. Norms of sums: norm(x + mixer(x)), and what follows reads that (post-norm).
    Without an MLP the layer is its mixer.
    """

    mixer: AttentionSpec | LatentAttentionSpec | Mamba2Spec
    mlp: MLPSpec | MoESpec | None
    norm: NormSpec
    norm_inputs: bool = True
    norm_outputs: bool = False
    norm_sums: bool = False
    is_parallel: bool = False
    shares_norm: bool = False  # of a parallel layer
    residual_scale: float = 1.0

    @property
    def attention(self) -> AttentionSpec:
        """The mixer, of a layer that keeps keys and values."""
        assert isinstance(self.mixer, AttentionSpec), "this layer keeps something else"
        return self.mixer


@dataclass(frozen=True, slots=True)
class KVGroupSpec:
    """Layers that keep the same: of all tokens (`window` None), of the last `window`, or a state."""

    layers: tuple[int, ...]
    window: int | None
    latent_dim: int = 0  # 0: keys and values; else latents of this width, and a key that turns beside each
    is_state: bool = False  # one of its own, for all tokens so far


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model, whole. `dtype` is what the checkpoint says it holds; `max_context` what it can attend to.

    Where the last layer norms its sums, `final_norm` is the last of them: it has the layer's weight.
    """

    hidden_size: int
    vocab_size: int
    layers: tuple[LayerSpec, ...]
    final_norm: NormSpec
    max_context: int
    tie_embeddings: bool
    has_head: bool = True  # False: an encoder, which has hidden rows and no logits
    embed_scale: float = 1.0
    embed_norm: NormSpec | None = None
    embed_size: int | None = None  # of the table and the head, where products lead to hidden_size and back
    positions: PositionTableSpec | None = None
    logit_scale: float = 1.0
    logit_softcap: float | None = None  # logits become softcap * tanh(logit / softcap)
    dtype: str | None = None  # float32 | float16 | bfloat16; None: config.json does not say
    num_draft_layers: int = 0  # after the last, in the checkpoint alone: they guess further tokens
    left_out: str = ""  # parts of the checkpoint that are not served: a line for people
    architecture: str = ""  # as config.json names it; the family's name in FAMILIES

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def is_causal(self) -> bool:
        """Whether no row reads what comes after it. Else a request is computed whole, in one step."""
        return all(layer.mixer.is_causal for layer in self.layers)

    def kv_groups(self) -> tuple[KVGroupSpec, ...]:
        """Layers by what they keep, in order of first appearance."""
        groups: dict[tuple[int | None, int, bool], list[int]] = {}
        for index, layer in enumerate(self.layers):
            mixer = layer.mixer
            latent_dim = mixer.latent_dim if isinstance(mixer, LatentAttentionSpec) else 0
            is_state = isinstance(mixer, Mamba2Spec)
            groups.setdefault((mixer.window, latent_dim, is_state), []).append(index)
        return tuple(KVGroupSpec(tuple(layers), *kind) for kind, layers in groups.items())
