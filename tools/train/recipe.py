"""Every number of a training run, as data: shape, schedule, mixture.

Read by all of tools/train. Whoever wants another model writes another Recipe; no other file holds a
hyperparameter of it.
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
    twice, 0.5 shows half of them; `own` is text that the teacher wrote, `functions` are documented functions
    of code, each alone. Texts come in one order for all stages of a recipe, and `shown_from` says where in it
    the first epoch begins; the next goes on there, so that none comes again before all were shown.
    `teaching` is the share of a target's weight that goes to the teacher's probabilities. `num_layers` is
    how many the network grows to before it; 0 leaves them. `time_share` is the stage's part of a time limit,
    if a run has one.
    """

    name: str
    num_steps: int
    rows_per_step: int
    row_tokens: int
    code: float
    prose: float
    chat: float
    fim: float
    own: float = 0.0
    functions: float = 0.0
    shown_from: float = 0.0
    teaching: float = 0.0
    first_rate: float = 1.0
    last_rate: float = 0.0
    num_layers: int = 0
    time_share: float = 1.0

    @property
    def is_constant(self) -> bool:
        return self.first_rate == self.last_rate


@dataclass(frozen=True, slots=True)
class Recipe:
    """One model, from nothing or from a smaller one to weights: warm-up, a stable rate, then falls (WSD).

    `grown_from` names the recipe whose weights it begins with; `teacher` the one that stages may learn from,
    and whose embedding it begins with where it is grown from nothing.
    """

    name: str
    shape: ModelShape
    stages: tuple[Stage, ...]
    grown_from: str = ""
    teacher: str = ""
    seed: int = 20
    num_threads: int = (
        1  # sums then have one order, so a run repeats bit for bit; and a shared machine stays usable
    )
    warmup_steps: int = 40
    muon_rate: float = 0.02
    adam_rate: float = 0.004
    weight_decay: float = 0.05
    max_grad_norm: float = 1.0


SPROUT = Recipe(
    name="penstock-sprout",
    shape=ModelShape(),
    stages=(
        Stage("stable", 541, 8, 512, code=0.2, prose=0.1, chat=0.0, fim=0.0, last_rate=1.0, time_share=0.7),
        Stage("anneal", 188, 2, 2048, code=0.25, prose=0.05, chat=0.6, fim=0.1, time_share=0.22),
        Stage(
            "polish", 59, 2, 2048, code=0.1, prose=0.02, chat=0.3, fim=0.03, first_rate=0.3, time_share=0.08
        ),
        Stage("again", 400, 8, 512, code=0.2, prose=0.1, chat=0.0, fim=0.0, first_rate=0.6, last_rate=0.6),
        Stage("settle", 200, 2, 2048, code=0.4, prose=0.05, chat=0.6, fim=0.05, first_rate=0.6),
    ),
)
SAPLING = Recipe(
    name="penstock-sapling",
    shape=ModelShape(vocab_size=8192, num_layers=12),
    grown_from=SPROUT.name,
    warmup_steps=15,
    muon_rate=0.012,
    adam_rate=0.003,
    stages=(
        Stage("transfer", 185, 12, 256, 0.1, 0.03, 0, 0, last_rate=1.0, time_share=0.25),
        Stage("stable", 63, 8, 512, 0.1, 0.03, 0, 0, last_rate=1.0, num_layers=12, time_share=0.35),
        Stage("anneal", 62, 4, 1024, 0.1, 0.02, chat=0.05, fim=0.05, time_share=0.4),
    ),
)
TINY = Recipe(
    name="penstock-tiny",
    shape=ModelShape(vocab_size=8192, num_layers=12),
    grown_from=SAPLING.name,
    seed=21,
    warmup_steps=10,
    muon_rate=0.012,
    adam_rate=0.003,
    stages=(
        Stage("stable", 778, 8, 512, 0.2, 0.02, 0, 0, last_rate=1.0, time_share=0.5),
        Stage(
            *("fall", 416, 4, 1024, 0.1, 0.02, 0.01, 0.01, 0, 0.1, 0.25),
            last_rate=0.4,
            time_share=0.3,
        ),
        Stage(
            *("settle", 226, 4, 1024, 0.1, 0.015, 0.01, 0.02, 0, 0.15, 0.4),
            first_rate=0.4,
            time_share=0.2,
        ),
    ),
)
SMALL = Recipe(
    name="penstock-small",
    shape=ModelShape(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1408,
        num_layers=16,
        num_heads=8,
        num_kv_heads=4,
    ),
    stages=(
        Stage("stable", 12000, 16, 1024, 0.1, 0.04, 0, 0, last_rate=1.0, time_share=0.75),
        Stage("anneal", 4000, 8, 2048, 0.1, 0.03, chat=0.06, fim=0.06, time_share=0.25),
    ),
)
_DRAFT_SHAPE = ModelShape(
    vocab_size=8192, hidden_size=128, intermediate_size=384, num_layers=4, num_heads=2, num_kv_heads=1
)
SPRIG = Recipe(
    name="penstock-sprig",
    shape=_DRAFT_SHAPE,
    teacher=SAPLING.name,
    warmup_steps=10,
    stages=(
        Stage("stable", 3448, 4, 512, code=0.2, prose=0.0, chat=0.0, fim=0.0, last_rate=1.0, time_share=0.6),
        Stage("fall", 1766, 4, 512, 0.2, 0.0, 0.0, 0.0, shown_from=0.6, last_rate=0.3, time_share=0.4),
    ),
)
DRAFT = Recipe(
    name="penstock-draft",
    shape=_DRAFT_SHAPE,
    grown_from=SPRIG.name,
    teacher=TINY.name,
    warmup_steps=8,
    stages=(
        Stage(
            *("distil", 909, 4, 512, 0.3, 0, 0, 0, 0.0, 0.0, 0.1),
            teaching=0.9,
            first_rate=0.4,
            last_rate=0.3394,
            time_share=0.5,
        ),
        Stage(
            *("settle", 467, 4, 512, 0.3, 0, 0, 0, 0.0, 0.0, 0.4),
            teaching=0.9,
            first_rate=0.3394,
            time_share=0.5,
        ),
    ),
)
RECIPES = {recipe.name: recipe for recipe in (SPROUT, SAPLING, TINY, SMALL, SPRIG, DRAFT)}
