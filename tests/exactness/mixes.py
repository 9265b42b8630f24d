"""Random mixes of requests and random circumstances to run them in: the same seed, the same mix.

Prompts share beginnings, from one token to several hundred, some beyond two 512-token partitions of the KV
cache; parameters are of all kinds that `SamplingParams` knows. Circumstances are what no answer depends on.
"""

from dataclasses import dataclass
from random import Random
from typing import Any

from penstock.request import SamplingParams

STOP_STRINGS = ("a", "e", " t", "in", "s\n", "é", "0", "zzzz", "the", " ")
STEP_TOKENS = (1, 7, 64, 129, 512)
BATCH_SIZES = (1, 2, 3, 4, 6, 8, 11, 13, 16, 17, 24, 31, 33, 48, 64)


@dataclass(frozen=True, slots=True)
class Ask:
    """One call: a prompt and what is wanted of it. `emitted`: what it had said before it was replayed."""

    prompt_tokens: tuple[int, ...]
    params: SamplingParams
    priority: int = 0
    cache_salt: str = ""
    emitted: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Circumstances:
    """How a mix is run. Chances are per step."""

    seed: int = 0
    max_requests: int = 64
    max_step_tokens: int = 2_048
    threads: int = 1
    prefix_cache: bool = False
    is_warm: bool = False  # the mix ran before: whatever can be cached is
    policy: str = "fcfs"
    is_permuted: bool = False
    arrives_apart: bool = False
    preempt_chance: float = 0.0
    abort_chance: float = 0.0
    reset_chance: float = 0.0  # of the prefix cache
    is_short_of_blocks: bool = False
    starts_dirty: bool = False  # the KV memory holds NaN wherever nothing was written


def make_mix(
    seed: int, *, vocab_size: int, num_asks: int, longest: int = 700, num_long: int = 1
) -> list[Ask]:
    """`num_asks` calls, `num_long` of them with prompts of 1,101 to 1,300 tokens."""
    random = Random(f"mix {seed}")
    stems = [_tokens(random, vocab_size, length) for length in (200, longest, 1_300)]
    asks: list[Ask] = []
    for index in range(num_asks):
        if index < num_long:
            length, stem = random.randint(1_101, 1_300), stems[2]
        else:
            length, stem = _length(random, longest), random.choice(stems[:2])
        shared = min(length, len(stem), random.choice((0, 1, 64, 65, 130, 200, length - 1, length, length)))
        prompt = (*stem[:shared], *_tokens(random, vocab_size, length - shared))
        salt = "salt" if random.random() < 0.1 else ""
        asks.append(Ask(prompt, make_params(random, index, vocab_size), random.randint(-1, 1), salt))
    random.shuffle(asks)
    return asks


def make_params(random: Random, index: int, vocab_size: int) -> SamplingParams:
    """Parameters of all kinds, a few at a time. No two requests of a mix have one seed."""
    chosen: dict[str, Any] = {  # Any: each parameter's own type
        "temperature": random.choice((0.0, 0.0, 0.7, 1.0, 1.6)),
        "max_tokens": random.choice((1, 2, 5, 8, 12, 20)),
        "seed": random.getrandbits(40) * 1_000 + index,
        "ignore_eos": random.random() < 0.5,
        "skip_special_tokens": random.random() < 0.5,
        "include_stop_str_in_output": random.random() < 0.3,
    }
    for name, chance, value in (
        ("top_k", 0.2, random.choice((1, 3, 40, 10**6))),
        ("top_p", 0.2, random.choice((0.1, 0.8, 0.95))),
        ("min_p", 0.1, random.choice((0.05, 0.5))),
        ("typical_p", 0.1, random.choice((0.2, 0.9))),
        ("repetition_penalty", 0.2, random.choice((0.8, 1.3))),
        ("presence_penalty", 0.15, random.uniform(-2, 2)),
        ("frequency_penalty", 0.15, random.uniform(-2, 2)),
        ("logit_bias", 0.15, {random.randrange(vocab_size): random.uniform(-9, 9) for _ in range(6)}),
        ("allowed_token_ids", 0.1, _tokens(random, vocab_size, random.choice((2, 30)))),
        ("bad_words", 0.1, tuple(random.sample(STOP_STRINGS[:3], 2))),
        ("stop", 0.3, tuple(random.sample(STOP_STRINGS, 3))),
        ("stop_token_ids", 0.15, _tokens(random, vocab_size, 25)),
        ("min_tokens", 0.2, random.randint(1, chosen["max_tokens"])),
        ("logprobs", 0.4, random.choice((0, 1, 5, 20))),
        ("prompt_logprobs", 0.12, random.choice((0, 3))),
        ("n", 0.15, random.choice((2, 3))),
    ):
        if random.random() < chance:
            chosen[name] = value
    if "allowed_token_ids" in chosen:
        chosen.pop("stop_token_ids", None)  # together they may leave nothing to draw, which is refused
        chosen["ignore_eos"] = True
    return SamplingParams(**chosen)


def make_circumstances(seed: int) -> Circumstances:
    """Any batch size and chunk size, with a share of everything else that may happen."""
    random = Random(f"circumstances {seed}")
    (max_step_tokens,) = random.choices(STEP_TOKENS, (1, 2, 4, 4, 4))
    sizes = [size for size in BATCH_SIZES if size <= max_step_tokens]
    prefix_cache = random.random() < 0.6
    return Circumstances(
        seed=seed,
        max_requests=random.choice(sizes[-5:] if random.random() < 0.5 else sizes),
        max_step_tokens=max_step_tokens,
        threads=random.choice((1, 2)),
        prefix_cache=prefix_cache,
        is_warm=prefix_cache and random.random() < 0.4,
        policy=random.choice(("fcfs", "priority", "shortest_prefill")),
        is_permuted=random.random() < 0.7,
        arrives_apart=random.random() < 0.6,
        preempt_chance=random.choice((0.0, 0.05, 0.2)),
        abort_chance=random.choice((0.0, 0.0, 0.02)),
        reset_chance=0.05 if prefix_cache and random.random() < 0.5 else 0.0,
        is_short_of_blocks=random.random() < 0.3,
        starts_dirty=random.random() < 0.5,
    )


def _tokens(random: Random, vocab_size: int, count: int) -> tuple[int, ...]:
    return tuple(random.randrange(vocab_size) for _ in range(count))


def _length(random: Random, longest: int) -> int:
    kind = random.random()
    if kind < 0.4:
        return random.choice((1, 1, 2, 3, 5, 17, 33))
    if kind < 0.7:
        return random.choice((62, 63, 64, 65, 66, 127, 128, 129, 130))
    return random.randint(2, longest)
