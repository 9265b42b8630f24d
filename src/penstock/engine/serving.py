"""The nouns of serving: what a front end tells the engine and what it may know of it. No transport, no HTTP.

Used by AsyncEngine, by the rooms above it and by the supervisor. A Call is refused where it is made if its
ids are no 32-bit integers; everything else is for admission to say.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import msgspec

from penstock.config import limit
from penstock.errors import InvalidRequestError
from penstock.request import GrammarSpec, SamplingParams


class EngineState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    ENGINE_DOWN = "engine_down"
    STOPPED = "stopped"


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The served model, as clients may know it. `exactness`: "exact", or "lossy:" and what makes it so."""

    name: str
    max_context: int
    vocab_size: int
    fingerprint: str
    exactness: str
    config_hash: str
    kv_bytes_per_token: int
    plan: Mapping[str, str]  # what was decided, as text: for /metrics, logs and `penstock explain`
    defaults: SamplingParams
    embedding_size: int = 0  # numbers of an embedding
    embedding_cuts: tuple[int, ...] = ()  # sizes to which it was trained to be cut
    pooling: str = "last"  # of embeddings that do not ask for one
    is_normalized: bool = True  # whether embeddings have length 1
    has_head: bool = True  # False: an encoder, which makes embeddings alone


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """`reasons` says in words why it is not ready; empty where it is."""

    state: EngineState
    ready: bool
    reasons: list[str]
    heartbeat_age_s: float | None
    num_running: int
    num_queued: int
    queued_bytes: int
    kv_usage: float


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every bound of the server, in one place; one TOML file sets them. Sizes in bytes, times in seconds."""

    # what one HTTP request may bring
    body_bytes: Annotated[int, limit("Largest body. 413 before it is read.", low=1, high=2**31)] = 4 << 20
    headers: Annotated[int, limit("Most header lines. 431.", low=1, high=2**16)] = 100
    header_bytes: Annotated[int, limit("Largest head, in bytes. 431.", low=256, high=2**24)] = 32 << 10
    json_depth: Annotated[
        int, limit("Deepest nesting of a body. Deeper ones are attacks on parsers.", low=1, high=500)
    ] = 64
    prompts: Annotated[
        int, limit("Most prompts in one call. Each is a request of its own.", low=1, high=4096)
    ] = 64
    n: Annotated[int, limit("Most answers per prompt. Each is a request of its own.", low=1, high=16)] = 16
    prompts_times_n: Annotated[
        int,
        limit(
            "Most answers of one call, prompts times n. One call may not fill the queue.", low=1, high=65536
        ),
    ] = 128
    top_logprobs: Annotated[
        int, limit("Most logprobs per position. Each position of the answer carries as many.", low=0, high=20)
    ] = 20
    prompt_logprobs: Annotated[
        int,
        limit("Most logprobs per position of the prompt. The answer grows with the prompt.", low=0, high=20),
    ] = 20
    stop_strings: Annotated[
        int, limit("Most stop strings. Each is compared after every token.", low=0, high=16)
    ] = 16
    listed_token_ids: Annotated[
        int,
        limit(
            "Most entries of stop_token_ids, bad_words or allowed_token_ids.",
            low=0,
            high=1024,
        ),
    ] = 1024
    logit_bias: Annotated[
        int, limit("Most entries of logit_bias. Each is added for every token.", low=0, high=1024)
    ] = 1024
    tools: Annotated[
        int, limit("Most tools of one call. Their schemas are part of the prompt.", low=0, high=4096)
    ] = 128
    cache_salt_chars: Annotated[
        int, limit("Longest cache_salt. It is part of every block's key.", low=1, high=4096)
    ] = 128
    request_id_chars: Annotated[
        int, limit("Longest x-request-id that is kept. A longer one is replaced.", low=0, high=4096)
    ] = 128
    user_chars: Annotated[int, limit("Longest user. It is used for nothing.", low=0, high=65536)] = 512

    # how long it may take
    header_s: Annotated[
        float, limit("Seconds for a request's head to come. Slow heads hold connections.", low=0.01, high=1e6)
    ] = 10.0
    body_s: Annotated[
        float,
        limit(
            "Seconds for a body that comes at less than 16 KiB/s. Slow bodies hold connections.",
            low=0.01,
            high=1e6,
        ),
    ] = 30.0
    queue_wait_s: Annotated[
        float,
        limit("Longest wait in the queue. Who would wait longer is refused at once.", low=0.01, high=1e6),
    ] = 60.0
    total_s: Annotated[
        float, limit("Longest time of one answer, waiting included. 504.", low=0.01, high=1e9)
    ] = 600.0
    idle_write_s: Annotated[
        float, limit("Longest time in which a client reads nothing. It is let go.", low=0.01, high=1e6)
    ] = 60.0
    drain_s: Annotated[
        float,
        limit(
            "How long open answers may go on after SIGTERM. Then they end with an error event.",
            low=0,
            high=1e6,
        ),
    ] = 30.0

    # how much may wait
    queued_requests: Annotated[
        int, limit("Most calls that wait. 503 with Retry-After.", low=1, high=10**7)
    ] = 1000
    queued_bytes: Annotated[
        int, limit("Most bytes of calls that wait. 503 with Retry-After.", low=1024, high=2**40)
    ] = 64 << 20
    unsent_bytes: Annotated[
        int, limit("Unread bytes of one answer, before its reader counts as slow.", low=1024, high=2**30)
    ] = 64 << 10
    offload_threads: Annotated[
        int,
        limit("Threads for tokenizing and templates. They share the cores with the engine.", low=1, high=64),
    ] = 2

    # the engine process
    heartbeat_s: Annotated[
        float, limit("Oldest heartbeat of a ready engine. /ready is 503 beyond it.", low=0.1, high=1e4)
    ] = 5.0
    hang_s: Annotated[
        float,
        limit(
            "A longer step, if it is also five times what was predicted, hangs: a restart.",
            low=0.1,
            high=1e6,
        ),
    ] = 10.0
    restart_backoff_s: Annotated[
        float, limit("First pause before a restart; it doubles.", low=0, high=1e4)
    ] = 0.5
    restart_backoff_max_s: Annotated[float, limit("Longest pause before a restart.", low=0, high=1e4)] = 30.0
    restart_failures: Annotated[
        int,
        limit(
            "Deaths within restart_window_s at which the server gives up. It ends with code 70.",
            low=1,
            high=1000,
        ),
    ] = 5
    restart_window_s: Annotated[float, limit("Window in which deaths are counted.", low=0.1, high=1e6)] = 60.0
    shed_memory: Annotated[
        float,
        limit(
            "Share of the memory beyond which new calls are refused. It never relies on the kernel's killer.",
            low=0,
            high=1,
        ),
    ] = 0.90
    abort_memory: Annotated[
        float, limit("Share of the memory beyond which the youngest calls are aborted.", low=0, high=1)
    ] = 0.95


@dataclass(slots=True, kw_only=True)
class Call:
    """One user call, read and tokenized. `request_id` is for answers and logs, never a key of the engine's.

    `prompt_tokens` are kept as 32-bit integers: thousands of long prompts may wait.
    """

    request_id: str
    prompt_tokens: Sequence[int]
    params: SamplingParams
    priority: int = 0
    cache_salt: str = ""
    grammar: GrammarSpec | None = None
    grammar_param: str = "structured_outputs"  # what the user calls it, for messages
    timeout_s: float | None = None  # lowers the deadline, never raises it
    key_id: str = ""  # whose API key: one key's cached beginnings are not another's
    prompt: str | None = None
    pooling: str = ""  # "last", "mean" or "cls": an embedding is asked for, and no token

    def __post_init__(self) -> None:
        try:
            self.prompt_tokens = array("i", self.prompt_tokens)
        except (OverflowError, TypeError):
            raise InvalidRequestError(
                "a prompt token is no 32-bit integer; give ids of this model's vocabulary.", param="prompt"
            ) from None


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """What one answer cost. `energy_source` is "none" where no counter can be read: no joule is made up."""

    queue_ms: float
    prefill_ms: float
    decode_ms: float
    cached_tokens: int
    kv_bytes: int
    exactness: str
    config_hash: str
    energy_source: str = "none"
