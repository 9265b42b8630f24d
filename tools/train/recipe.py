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
    """A stretch of training on one mixture, its rate going linearly between two multiples of the recipe's.

    `code`, `prose`, `chat` and `fim` say how much of each kind of text an epoch holds: 2 shows every text
    twice, 0.5 shows half of them. `time_share` is the stage's part of a time limit, if a run has one.
    """

    name: str
    num_steps: int
    rows_per_step: int
    row_tokens: int
    code: float
    prose: float
    chat: float
    fim: float
    first_rate: float = 1.0
    last_rate: float = 0.0
    time_share: float = 1.0

    @property
    def is_constant(self) -> bool:
        return self.first_rate == self.last_rate


@dataclass(frozen=True, slots=True)
class Recipe:
    """One model, from nothing to weights: warm-up, a stable rate, then falls to zero (WSD)."""

    name: str
    shape: ModelShape
    stages: tuple[Stage, ...]
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
    stages=(
        Stage("stable", 541, 8, 512, code=1.0, prose=0.5, chat=0.0, fim=0.0, last_rate=1.0, time_share=0.7),
        Stage("anneal", 188, 2, 2048, code=0.25, prose=0.05, chat=0.6, fim=0.1, time_share=0.22),
        Stage(
            "polish", 59, 2, 2048, code=0.1, prose=0.02, chat=0.3, fim=0.03, first_rate=0.3, time_share=0.08
        ),
        Stage("again", 400, 8, 512, code=1.0, prose=0.4, chat=0.0, fim=0.0, first_rate=0.6, last_rate=0.6),
        Stage("settle", 200, 2, 2048, code=0.4, prose=0.05, chat=0.6, fim=0.05, first_rate=0.6),
    ),
)
