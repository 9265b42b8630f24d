"""SamplingRows of a step from the requests behind its rows. Called by the engine's input maker, every step.

Keep a request's RowRequest from step to step and move `position`: what follows from its parameters alone is
then made once, and its history grows by the new tokens only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import is_
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from penstock.request import SamplingParams
from penstock.step import SamplingRows

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
Mask = NDArray[np.uint32]
Values = TypeVar("Values", Ints, Floats)

_NO_TOKENS = np.zeros(0, np.int32)
_NO_VALUES = np.zeros(0, np.float32)
_REALS = (
    "temperature",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)


class History:
    """The tokens of one request, each once, and how often each occurs in its output."""

    def __init__(self, prompt_tokens: Sequence[int]) -> None:
        self._prompt = np.unique(np.asarray(prompt_tokens, np.int32))
        self._read: Sequence[int] | None = None
        self._num_read = 0
        self._size = 0
        self._tokens = self._counts = _NO_TOKENS
        self._place: dict[int, int] = {}

    def of(self, output_tokens: Sequence[int]) -> tuple[Ints, Ints]:
        """(tokens, counts). Only the end is read where `output_tokens` is the list of last time, grown."""
        if output_tokens is not self._read or len(output_tokens) < self._num_read:
            self._restart()
        for token in output_tokens[self._num_read :]:
            place = self._place.setdefault(token, self._size)
            if place == self._size:
                if place == len(self._tokens):
                    self._tokens, self._counts = _double(self._tokens), _double(self._counts)
                self._tokens[place] = token
                self._size += 1
            self._counts[place] += 1
        self._read = output_tokens
        self._num_read = len(output_tokens)
        return self._tokens[: self._size], self._counts[: self._size]

    def _restart(self) -> None:
        self._size = len(self._prompt)
        self._tokens = _double(self._prompt)
        self._counts = np.zeros_like(self._tokens)
        self._place = dict(zip(self._prompt.tolist(), range(self._size), strict=True))
        self._num_read = 0


def _double(values: Ints) -> Ints:
    return np.concatenate([values, np.zeros(max(16, len(values)), np.int32)])


@dataclass(slots=True)
class RowRequest:
    """What a row of logits needs to know of its request. `position`: of the token to be drawn, from 0."""

    params: SamplingParams
    seed: int
    position: int
    prompt_tokens: Sequence[int] = ()
    output_tokens: Sequence[int] = ()
    banned: Sequence[int] = ()  # ids at -inf: stop ids held back by min_tokens, endings of bad words
    target: int = -1  # >= 0: score this token instead of drawing one
    num_logprobs: int = -1
    mask: Mask | None = None  # [ceil(V/32)]: a grammar's, besides allowed_token_ids
    is_plain: bool = field(init=False, repr=False)  # its parameters ask for no penalty, bias or mask
    is_penalized: bool = field(init=False, repr=False)
    top_k: int = field(init=False, repr=False)
    reals: tuple[float, ...] = field(init=False, repr=False)  # in the order of _REALS
    _history: History | None = field(init=False, default=None, repr=False)
    _allowed: Mask | None = field(init=False, default=None, repr=False)
    _bias: tuple[Ints, Floats] | None = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        p = self.params
        penalties = p.repetition_penalty, p.presence_penalty, p.frequency_penalty
        self.reals = (p.temperature, p.top_p, p.min_p, p.typical_p, *penalties)
        self.top_k = min(p.top_k, 2**31 - 1)
        self.is_penalized = penalties != (1.0, 0.0, 0.0)
        self.is_plain = not (self.is_penalized or p.logit_bias or p.allowed_token_ids is not None)

    def history(self) -> tuple[Ints, Ints]:
        if not self.is_penalized:
            return _NO_TOKENS, _NO_TOKENS
        if self._history is None:
            self._history = History(self.prompt_tokens)
        return self._history.of(self.output_tokens)

    def bias(self) -> tuple[Ints, Floats]:
        """logit_bias, then the banned at -inf."""
        if self._bias is None:
            pairs = sorted((self.params.logit_bias or {}).items())
            self._bias = (
                np.array([token for token, _ in pairs], np.int32),
                np.array([value for _, value in pairs], np.float32),
            )
        tokens, values = self._bias
        if not self.banned:
            return tokens, values
        bans = np.full(len(self.banned), -np.inf, np.float32)
        return np.concatenate([tokens, np.array(self.banned, np.int32)]), np.concatenate([values, bans])

    def allowed(self, vocab_size: int) -> Mask | None:
        """The tokens that both `mask` and allowed_token_ids leave, or None: all."""
        if self.params.allowed_token_ids is None:
            return self.mask
        if self._allowed is None:
            self._allowed = make_mask(self.params.allowed_token_ids, vocab_size)
        return self._allowed if self.mask is None else self._allowed & self.mask


def make_mask(token_ids: Sequence[int], vocab_size: int) -> Mask:
    """A bit for each token id, 32 a word, the lowest first: [ceil(V/32)]."""
    bits = np.zeros(-(-vocab_size // 32) * 32, np.uint8)
    bits[np.asarray(token_ids, np.intp)] = 1
    return np.packbits(bits, bitorder="little").view("<u4").astype(np.uint32)


class RowMaker:
    """`make_rows` for one step after the other: where the same requests come again and none has edits, all
    arrays but the positions are those of the step before."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._entries: Sequence[RowRequest] = ()
        self._rows = make_rows((), vocab_size)

    def make(self, entries: Sequence[RowRequest]) -> SamplingRows:
        if not _are_plain(entries):
            return make_rows(entries, self._vocab_size)
        if len(entries) != len(self._entries) or not all(map(is_, entries, self._entries)):
            self._entries, self._rows = entries, make_rows(entries, self._vocab_size)
            return self._rows
        rows = self._rows
        return SamplingRows(
            rows.temperature, rows.top_k, rows.top_p, rows.min_p, rows.typical_p, rows.repetition_penalty,
            rows.presence_penalty, rows.frequency_penalty, rows.seed,
            np.array([entry.position for entry in entries], np.int64),
            rows.target, rows.num_logprobs, rows.history_start, rows.history_token, rows.history_count,
            rows.bias_start, rows.bias_token, rows.bias_value,
        )  # fmt: skip


def _are_plain(entries: Sequence[RowRequest]) -> bool:
    return all(entry.is_plain and not entry.banned and entry.mask is None for entry in entries)


def make_rows(entries: Sequence[RowRequest], vocab_size: int) -> SamplingRows:
    """One row for each entry; a few microseconds each without penalties, bias or masks. Checks nothing."""
    reals = np.array([entry.reals for entry in entries], np.float32).reshape(-1, len(_REALS)).T.copy()
    starts = np.zeros(len(entries) + 1, np.int32)
    history, bias, masks = (starts, _NO_TOKENS, _NO_TOKENS), (starts, _NO_TOKENS, _NO_VALUES), None
    if not _are_plain(entries):
        history = _ragged([entry.history() for entry in entries])
        bias = _ragged([entry.bias() for entry in entries])
        masks = _masks([entry.allowed(vocab_size) for entry in entries], vocab_size)
    return SamplingRows(
        **dict(zip(_REALS, reals, strict=True)),
        top_k=np.array([entry.top_k for entry in entries], np.int32),
        seed=np.array([entry.seed for entry in entries], np.uint64),
        position=np.array([entry.position for entry in entries], np.int64),
        target=np.array([entry.target for entry in entries], np.int32),
        num_logprobs=np.array([entry.num_logprobs for entry in entries], np.int32),
        history_start=history[0],
        history_token=history[1],
        history_count=history[2],
        bias_start=bias[0],
        bias_token=bias[1],
        bias_value=bias[2],
        allowed=masks,
    )


def _ragged(parts: Sequence[tuple[Ints, Values]]) -> tuple[Ints, Ints, Values]:
    starts = np.zeros(len(parts) + 1, np.int32)
    np.cumsum([len(tokens) for tokens, _ in parts], out=starts[1:])
    return starts, np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _masks(parts: Sequence[Mask | None], vocab_size: int) -> Mask | None:
    if all(part is None for part in parts):
        return None
    masks = np.full((len(parts), -(-vocab_size // 32)), 0xFFFFFFFF, np.uint32)
    for row, part in zip(masks, parts, strict=True):
        if part is not None:
            row[:] = part
    return masks
