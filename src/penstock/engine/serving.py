"""The nouns of serving: what a front end tells the engine and what it may know of it. No transport, no HTTP.

Used by AsyncEngine, by the rooms above it and by the supervisor. A Call is refused where it is made if its
ids are no 32-bit integers; everything else is for admission to say.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import msgspec

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
    body_bytes: int = 4 << 20
    headers: int = 100
    header_bytes: int = 32 << 10
    json_depth: int = 64
    prompts: int = 64
    n: int = 16
    prompts_times_n: int = 128
    top_logprobs: int = 20
    prompt_logprobs: int = 20
    stop_strings: int = 16
    stop_string_bytes: int = 256
    listed_token_ids: int = 1024  # stop_token_ids, bad_words, allowed_token_ids
    logit_bias: int = 1024
    tools: int = 128
    schema_bytes: int = 64 << 10
    schema_depth: int = 32
    schema_properties: int = 5000
    schema_enum_values: int = 1000
    regex_bytes: int = 4 << 10
    grammar_bytes: int = 64 << 10
    grammar_compile_s: float = 1.0
    cache_salt_chars: int = 128
    request_id_chars: int = 128
    user_chars: int = 512
    # how long it may take
    header_s: float = 10.0
    body_s: float = 30.0
    queue_wait_s: float = 60.0
    total_s: float = 600.0
    idle_write_s: float = 60.0
    drain_s: float = 30.0
    # how much may wait
    queued_requests: int = 1000
    queued_bytes: int = 64 << 20
    unsent_bytes: int = 64 << 10  # of one stream, before its reader counts as slow
    offload_threads: int = 2
    # the engine process
    heartbeat_s: float = 5.0
    hang_s: float = 10.0
    restart_backoff_s: float = 0.5
    restart_backoff_max_s: float = 30.0
    restart_failures: int = 5
    restart_window_s: float = 60.0
    shed_memory: float = 0.90  # of the memory this process group may use: new requests are refused
    abort_memory: float = 0.95  # the youngest requests are aborted


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
    timeout_s: float | None = None  # lowers the deadline, never raises it
    key_id: str = ""  # whose API key: one key's cached beginnings are not another's
    prompt: str | None = None

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
