"""The loop's nouns: Schedule --inputs--> StepInput --Executor.forward--> StepOutput --update--> RequestDelta.

Schedule and RequestDelta are plain integers, fit for wires and traces; StepInput and StepOutput hold the
flat, ragged arrays of one forward pass (shape letters: STYLE.md 5). They are not frozen only because a frozen
dataclass of 19 fields takes 11 us to make where the weights have swept the caches; nobody changes one.
Imports no room.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
import numpy as np


class ScheduledRequest(msgspec.Struct, frozen=True):
    """`num_tokens` tokens of one request, starting at `start`; drafts come last and count."""

    request_id: str
    start: int  # = num_computed_tokens
    num_tokens: int  # 1: decode. More: prefill, or decode with drafts. The scheduler does not care
    block_ids: tuple[tuple[int, ...], ...]  # per KV group
    draft_tokens: tuple[int, ...] = ()


class Schedule(msgspec.Struct, frozen=True):
    """What runs this step, in order. `preempted` lost their blocks just now and will be recomputed."""

    requests: tuple[ScheduledRequest, ...]
    preempted: tuple[str, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(r.num_tokens for r in self.requests)


@dataclass(slots=True)
class SamplingRows:
    """Sampling parameters of the R rows that need a token, one array each, plus sparse edits as ragged lists.

    Row r's sparse entries are `x_token[x_start[r]:x_start[r+1]]`. An all-default row (temperature 0, no
    edits) is plain argmax. `position` is the output position of the token to be drawn: with the seed it
    keys the noise. `target[r] >= 0` means: do not draw, score this token (prompt logprobs).
    """

    temperature: np.ndarray  # [R] float32; below 1e-5: greedy
    top_k: np.ndarray  # [R] int32; <= 0: none
    top_p: np.ndarray  # [R] float32; >= 1: none
    min_p: np.ndarray  # [R] float32; 0: none
    typical_p: np.ndarray  # [R] float32; >= 1: none
    repetition_penalty: np.ndarray  # [R] float32; 1: none
    presence_penalty: np.ndarray  # [R] float32
    frequency_penalty: np.ndarray  # [R] float32
    seed: np.ndarray  # [R] uint64
    position: np.ndarray  # [R] int64
    target: np.ndarray  # [R] int32; -1: draw
    num_logprobs: np.ndarray  # [R] int32; -1: none, 0: only the chosen token's, k: and the top k
    history_start: np.ndarray  # [R+1] int32: tokens seen so far, each once, for the penalties
    history_token: np.ndarray  # [.] int32
    history_count: np.ndarray  # [.] int32: occurrences in the output alone (0: only in the prompt)
    bias_start: np.ndarray  # [R+1] int32: logit_bias; -inf bans (bad words, ids held back by min_tokens)
    bias_token: np.ndarray  # [.] int32
    bias_value: np.ndarray  # [.] float32
    allowed: np.ndarray | None = None  # [R, ceil(V/32)] uint32 bit masks, or None: everything is allowed


@dataclass(slots=True)
class StepInput:
    """One forward pass over T rows of B requests, flat and never padded.

    Rows of a tree are alternatives: siblings share a position, and a row reads what is before its request's
    first position, its own path, and itself. So verifying a draft gives the bits of decoding it.

        slot      70 71 72 73 74       from the request's first position on
        parent    -1  0  0  1  1       as rows of the step
        position  70 71 71 72 72       rows 0 and 1 are in place; the others are drafts beside a path
    """

    tokens: np.ndarray  # [T] int32
    positions: np.ndarray  # [T] int32
    query_start: np.ndarray  # [B+1] int32: rows of request b are query_start[b] .. query_start[b+1]
    context_len: np.ndarray  # [B] int32, including this step's tokens
    block_tables: tuple[np.ndarray, ...]  # [G] of [B,M] int32, one per KV group
    logit_rows: np.ndarray  # [R] int32: the rows that need logits
    sampling: SamplingRows  # R rows
    # Named values to return: "logits" of `logit_rows`; "hidden", the rows after the last norm, float32, of
    # `hidden_rows` (none need be a logit row: no logits are computed for them).
    taps: tuple[str, ...] = ()
    hidden_rows: np.ndarray | None = None  # [E] int32
    # A tree of drafts: the row before each, -1 for rows at their request's first position; None: no tree.
    parents: np.ndarray | None = None  # [T] int32
    # Made before anything else, in order: keys and values of accepted drafts from their slots to their
    # positions. block_id * block_size + slot in it, from and to; one array per KV group, or none at all.
    moves: tuple[np.ndarray, ...] = ()  # [G] of [N,2] int32

    def slots(self) -> np.ndarray:
        """[T] int32: where each row's key and value lie, counted in its request's blocks.

        Positions, but for trees: their rows lie one after the other from the request's first position on,
        and `context_len` counts slots.
        """
        if self.parents is None:
            return self.positions
        counts = np.diff(self.query_start)
        starts = np.repeat(self.positions[self.query_start[:-1]] - self.query_start[:-1], counts)
        return (starts + np.arange(len(self.tokens))).astype(np.int32)


@dataclass(slots=True)
class StepOutput:
    """Row by row of `logit_rows`: the token drawn (or the target scored), and what was asked of it."""

    sampled: np.ndarray  # [R] int32
    logprob: np.ndarray  # [R] float32: of `sampled`, raw logits; NaN where none was asked
    rank: np.ndarray  # [R] int32: 1 = most likely; 0 where none was asked
    top_token: np.ndarray  # [R, kmax] int32, -1 padded
    top_logprob: np.ndarray  # [R, kmax] float32
    taps: Mapping[str, np.ndarray] = field(default_factory=dict)


class Drawn(msgspec.Struct, frozen=True):
    """What one forward pass gave one request, in plain numbers: StepOutput as the scheduler reads it.

    `tokens[i]` is the target's own choice after `draft_tokens[:i]`; empty while a prompt is being read.
    """

    tokens: tuple[int, ...] = ()
    logprobs: tuple[dict[int, tuple[float, int]], ...] | None = None  # per token: id -> (logprob, rank)
    prompt_logprobs: tuple[dict[int, tuple[float, int]], ...] | None = None  # of the prompt rows scored now
    num_pooled: int = 0  # prompt rows whose hidden values were taken now
    embedding: bytes | None = None  # float32; with the last of them


class RequestDelta(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What one step did for one request: new tokens, or why it ended. Crosses processes as an array."""

    request_id: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[dict[int, tuple[float, int]], ...] | None = None  # per token: id -> (logprob, rank)
    prompt_logprobs: tuple[dict[int, tuple[float, int]], ...] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    first_scheduled_s: float | None = None
    text: str | None = None  # of a request with stop strings: what became certain with these tokens
    ends_with_stop_id: bool = False  # the last token is a stop id, which is shown only where that was asked
    embedding: bytes | None = None  # float32, of a request with pooling: with its end


class Executor(Protocol):
    """Runs programs. `forward` writes this step's keys and values, draws the tokens, holds no request state.

    Contract (tests/contracts/test_executors.py): a row's outputs depend on the weights and the tokens
    before it alone: equal bytes for any batch, chunking, block placement and thread count.
    """

    def forward(self, step: StepInput) -> StepOutput: ...
    def describe(self) -> Mapping[str, str]:
        """Backend, ISA, kernels chosen and why: for `doctor` and the system fingerprint."""
        ...
