"""Every number of a training run, as data: shape, schedule, mixture.

Read by all of tools/train. Whoever wants another model writes another Recipe; no other file holds a
hyperparameter.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a Llama-shaped decoder; widths are multiples of 128, so that kernels take their wide paths."""

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 768
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    max_context_tokens: int = 2048


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of training on one mixture. Weights are how much of each kind of text the mixture holds.

    A weight of 2 shows every text twice per epoch, 0.5 shows half of them.
    """

    name: str
    num_steps: int
    rows_per_step: int
    row_tokens: int
    code: float
    prose: float
    chat: float
    fim: float


@dataclass(frozen=True, slots=True)
class Recipe:
    """One model, from nothing to weights: warm-up, a stable rate, then a linear fall to zero (WSD)."""

    name: str
    shape: ModelShape
    stable: Stage
    anneal: Stage
    seed: int = 20
    num_threads: int = (
        1  # sums then have one order, so a run repeats bit for bit; and a shared machine stays usable
    )
    warmup_steps: int = 40
    muon_rate: float = 0.02
    adam_rate: float = 0.004
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0


TINY = Recipe(
    name="penstock-tiny",
    shape=ModelShape(),
    stable=Stage("stable", 541, rows_per_step=8, row_tokens=512, code=1.0, prose=0.5, chat=0.0, fim=0.0),
    anneal=Stage("anneal", 188, rows_per_step=2, row_tokens=2048, code=0.25, prose=0.05, chat=0.6, fim=0.2),
)
