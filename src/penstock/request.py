"""What a user asks for and what is given back: SamplingParams, Request, RequestOutput.

The public names and fields follow vLLM's. Request is the engine's own record of one call; nothing here
computes anything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

GrammarKind = Literal["json_object", "json_schema", "regex", "choice", "lark", "ebnf"]


class GrammarSpec(msgspec.Struct, frozen=True):
    """What an answer must match. `text` is a JSON schema, a pattern, a JSON list of texts, a grammar, or "".

    Made by `text.grammar`, which says what each kind allows; compiled only after a limited worker has proved
    that it can be.
    """

    kind: GrammarKind
    text: str = ""


class StructuredOutputsParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """At most one is given; the answer matches it as a whole. `grammar`: Lark, or GBNF-like EBNF (`::=`)."""

    json: str | Mapping[str, Any] | None = None  # Any: a JSON schema
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None
    json_object: bool = False


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How tokens are drawn. Checked by `sampling.params.check` at admission, never clamped.

    Processed logits: penalties, bias, masks, then temperature, then the cut (top-k, top-p, min-p,
    typical-p), then Gumbel noise by (seed, output position, token id), then argmax; temperature 0
    skips the noise. logprobs are those of the raw logits (DESIGN.md 9.22, 9.27).
    """

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0  # 0 or -1: no cut
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[str, ...] = ()
    min_tokens: int = 0
    max_tokens: int | None = 16  # None: until the context is full
    stop: tuple[str, ...] | str = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    seed: int | None = None  # None: one is drawn at admission and returned
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    structured_outputs: StructuredOutputsParams | None = None


@dataclass(slots=True)
class Request:
    """One admitted generation (one of n). Tokens only ever grow; the scheduler owns the counters.

    `tokens` = prompt then output. `num_computed_tokens` of them have their keys and values in the
    cache; each step computes `num_tokens` more. There is no prefill and no decode.
    """

    request_id: str
    prompt_tokens: tuple[int, ...]
    params: SamplingParams
    seed: int
    arrival_s: float
    max_output_tokens: int
    stop_ids: frozenset[int]  # end-of-sequence ids (unless ignored) and stop_token_ids
    priority: int = 0  # lower goes first
    cache_salt: str = ""
    key_id: str = ""  # whose API key: cached blocks are shared out by it
    bad_token_ids: tuple[tuple[int, ...], ...] = ()  # bad_words: the last id is banned after the rest
    grammar: GrammarSpec | None = None
    pooling: str = ""  # "last", "mean" or "cls": no token is drawn, the prompt's hidden rows are pooled
    is_ready: bool = True  # False: its grammar is being built; it waits and is passed over
    output_tokens: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0  # prefix hit at first admission
    num_scored_tokens: int = 0  # prompt rows whose logprobs were given (only where they were asked)
    num_pooled_tokens: int = 0  # prompt rows that a mean has summed
    num_preemptions: int = 0
    first_scheduled_s: float | None = None

    def __post_init__(self) -> None:
        if not self.tokens:
            self.tokens = [*self.prompt_tokens, *self.output_tokens]

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_tokens)

    @property
    def num_uncomputed_tokens(self) -> int:
        return len(self.tokens) - self.num_computed_tokens

    @property
    def first_owed_row(self) -> int:
        """Rows from here on are wanted for more than their keys and values: no cached block replaces them."""
        last = len(self.tokens) - 1
        if self.pooling in ("mean", "cls"):
            return min(last, self.num_pooled_tokens)
        if self.params.prompt_logprobs is not None and self.num_scored_tokens < self.num_prompt_tokens - 1:
            return min(last, self.num_scored_tokens)
        return last

    def append(self, token: int) -> None:
        self.output_tokens.append(token)
        self.tokens.append(token)


class Logprob(msgspec.Struct, frozen=True):
    """log p of one token under the raw logits; rank 1 is the most likely."""

    logprob: float
    rank: int
    decoded_token: str = ""


@dataclass(slots=True)
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None = None  # "stop" | "length" | "abort"
    stop_reason: int | str | None = None  # the stop id or string that ended it; None: end of sequence


@dataclass(slots=True)
class RequestMetrics:
    """Times in seconds on one monotonic clock."""

    arrival_s: float
    first_scheduled_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    num_output_tokens: int = 0  # over all of n
    inter_token_s: list[float] = field(default_factory=list)

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_token_s is None else self.first_token_s - self.arrival_s


@dataclass(slots=True)
class RequestOutput:
    """One call's answer, shaped as vLLM users know it."""

    request_id: str
    prompt: str | None
    prompt_token_ids: Sequence[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics
    seed: int
    system_fingerprint: str = ""
    num_cached_tokens: int = 0


@dataclass(slots=True)
class EmbeddingOutput:
    """`embedding` has length 1, unless the checkpoint says otherwise."""

    embedding: list[float]


@dataclass(slots=True)
class EmbeddingRequestOutput:
    """One prompt's embedding, shaped as vLLM users know it."""

    request_id: str
    prompt_token_ids: Sequence[int]
    outputs: EmbeddingOutput
    finished: bool = True
    num_cached_tokens: int = 0
