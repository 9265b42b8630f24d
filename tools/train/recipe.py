"""Every number of a training run, as data: shape, splits, schedule, mixture.

Read by all of tools/train. Whoever wants another model writes another Recipe; no other file holds a
hyperparameter.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a Llama-shaped decoder. Widths are multiples of 128, so that every kernel takes its wide path."""

    vocab_size: int = 8192
    hidden_size: int = 256
    intermediate_size: int = 768
    num_layers: int = 6
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    max_context_tokens: int = 2048
