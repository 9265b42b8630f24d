"""What may be asked of the sampler: every value is checked at admission and refused by name, never clamped.

Called by the engine when a request is admitted, so that nothing absurd ever reaches a step. Ranges are those
of OpenAI and vLLM where the two agree; limits on entries bound what one request can cost the others.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from penstock.errors import InvalidRequestError
from penstock.request import SamplingParams
from penstock.sampling.noise import PURPOSE_SEEDS, philox

MAX_N = 16
MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STRING_BYTES = 256
MAX_ENTRIES = 1024  # of stop_token_ids, allowed_token_ids, logit_bias, bad_words
INT64 = 2**63

# name -> (lowest, highest, whether the lowest itself is allowed, why no other value makes sense)
_REALS = {
    "temperature": (0.0, 2.0, True, "it divides the logits, and above 2 the text is noise"),
    "top_p": (0.0, 1.0, False, "it is the share of the probability that is kept"),
    "min_p": (0.0, 1.0, True, "it is a share of the highest probability"),
    "typical_p": (0.0, 1.0, False, "it is the share of the probability that is kept"),
    "repetition_penalty": (0.0, 10.0, False, "it divides the logits of tokens seen before"),
    "presence_penalty": (-2.0, 2.0, True, "it is taken from the logits of tokens drawn before"),
    "frequency_penalty": (-2.0, 2.0, True, "it is taken from the logits of tokens drawn before, each time"),
}
_FLAGS = ("include_stop_str_in_output", "ignore_eos", "skip_special_tokens")


def check(params: SamplingParams, vocab_size: int, max_context: int) -> None:
    """Raise InvalidRequestError naming the first parameter whose type, value or company makes no sense.

    temperature 0, -0.0 and anything below 1e-5 are greedy; top_k above the vocabulary is no cut; equal
    entries may repeat. Does not look at the prompt: that its length and max_tokens fit is checked there.
    """
    for name, (low, high, closed, why) in _REALS.items():
        _real(name, getattr(params, name), low, high, why, closed=closed)
    for name in _FLAGS:
        if type(getattr(params, name)) is not bool:
            raise _type_error(name, getattr(params, name), "true or false")
    _integer("n", params.n, 1, MAX_N, "each of the n completions is a request of its own")
    _integer("top_k", params.top_k, -1, INT64 - 1, "it is how many tokens are kept (0 or -1: all)")
    _integer("min_tokens", params.min_tokens, 0, max_context, "the context holds no more")
    if params.max_tokens is not None:
        _integer("max_tokens", params.max_tokens, 1, max_context, "the context holds no more")
        if params.min_tokens > params.max_tokens:
            raise _error(
                "min_tokens",
                f"min_tokens is {params.min_tokens} and max_tokens is {params.max_tokens}",
                "no answer can be at least the one and at most the other",
                "Lower min_tokens or raise max_tokens.",
            )
    if params.seed is not None:
        _integer("seed", params.seed, -INT64, INT64 - 1, "it is a signed 64-bit number")
    for name in ("logprobs", "prompt_logprobs"):
        if getattr(params, name) is not None:
            _integer(
                name, getattr(params, name), 0, MAX_LOGPROBS, "each position of the answer carries as many"
            )
    _strings("stop", (params.stop,) if isinstance(params.stop, str) else params.stop, MAX_STOP_STRINGS)
    _strings("bad_words", params.bad_words, MAX_ENTRIES)
    _token_ids("stop_token_ids", params.stop_token_ids, vocab_size)
    if params.allowed_token_ids is not None:
        _check_allowed(params, vocab_size)
    if params.logit_bias is not None:
        _check_bias(params.logit_bias, vocab_size)


def seeds_of(seed: int, n: int) -> list[int]:
    """The unsigned seeds of n completions: the first is the seed itself, the others are of (seed, index).

    >>> seeds_of(-1, 3)
    [18446744073709551615, 6285714636321523509, 4707678851054677866]
    """
    first = seed % 2**64
    words = philox(first, (0, 0), np.arange(n, dtype=np.uint64), PURPOSE_SEEDS).tolist()
    return [first, *(low | high << 32 for low, high, _, _ in words[1:])]


def bad_word_ids(params: SamplingParams, encode: Callable[[str], Sequence[int]]) -> list[tuple[int, ...]]:
    """The token sequences that spell a bad word, at the start of a text and after a space.

    `encode` adds no special tokens. An exact promise for these spellings alone: another segmentation of the
    same letters is another sequence.
    """
    spellings = (prefix + word.lstrip() for word in params.bad_words for prefix in ("", " "))
    ids = (tuple(encode(spelling)) for spelling in spellings)
    return list(dict.fromkeys(sequence for sequence in ids if sequence))


def banned_now(bad_words: Iterable[tuple[int, ...]], output_tokens: Sequence[int]) -> list[int]:
    """The tokens that would complete a bad word after `output_tokens`.

    >>> banned_now([(5,), (1, 2, 3), (9, 2, 4)], [7, 1, 2])
    [5, 3]
    """
    return [
        word[-1]
        for word in bad_words
        if len(word) - 1 <= len(output_tokens)
        and tuple(output_tokens[len(output_tokens) - len(word) + 1 :]) == word[:-1]
    ]


def _check_allowed(params: SamplingParams, vocab_size: int) -> None:
    allowed = params.allowed_token_ids
    assert allowed is not None, "asked only where there is a list"
    _token_ids("allowed_token_ids", allowed, vocab_size)
    if not allowed:
        raise _error(
            "allowed_token_ids",
            "allowed_token_ids is empty",
            "no token could be drawn",
            "Name at least one token or leave it out.",
        )
    if params.min_tokens > 0 and set(allowed) <= set(params.stop_token_ids):
        raise _error(
            "allowed_token_ids",
            "every one of allowed_token_ids is also a stop token",
            f"min_tokens={params.min_tokens} holds all of them back, so that no token could be drawn",
            "Allow another token or set min_tokens=0.",
        )


def _check_bias(bias: Mapping[int, float], vocab_size: int) -> None:
    if not isinstance(bias, Mapping):
        raise _type_error("logit_bias", bias, "a mapping from token ids to numbers")
    _token_ids("logit_bias", tuple(bias), vocab_size)
    for value in bias.values():
        _real("logit_bias", value, -100.0, 100.0, "100 already decides for or against a token", closed=True)


def _real(name: str, value: object, low: float, high: float, why: str, *, closed: bool) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _type_error(name, value, "a number")
    if not (low <= value <= high) or (value == low and not closed):
        bracket = "[" if closed else "("
        raise _range_error(name, value, f"{bracket}{low:g}, {high:g}]", why)


def _integer(name: str, value: object, low: int, high: int, why: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _type_error(name, value, "an integer")
    if not low <= value <= high:
        raise _range_error(name, value, f"[{low}, {high}]", why)


def _entries(name: str, values: object, limit: int) -> Sequence[Any]:  # Any: each entry is checked next
    if isinstance(values, str) or not isinstance(values, list | tuple):
        raise _type_error(name, values, "a list")
    if len(values) > limit:
        raise _error(
            name,
            f"{name} has {len(values):,} entries; the limit is {limit:,}",
            "each is looked at for every token",
            "Send fewer.",
            code="array_above_max_length",
        )
    return values


def _strings(name: str, values: object, limit: int) -> None:
    for text in _entries(name, values, limit):
        if not isinstance(text, str):
            raise _type_error(name, text, "a string or a list of strings")
        if not text.strip() if name == "bad_words" else not text:
            raise _error(name, f"{name} has an empty string", "it would match everywhere", "Leave it out.")
        if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
            raise _error(
                name,
                f"{name} has {_show(text)}",
                "no text holds NUL or half a surrogate pair",
                "Leave it out.",
            )
        if len(text.encode()) > MAX_STRING_BYTES:
            raise _error(
                name,
                f"{name} has a string of {len(text.encode()):,} bytes; the limit is {MAX_STRING_BYTES}",
                "it is compared with the text after every token",
                "Use a shorter one.",
                code="string_above_max_length",
            )


def _token_ids(name: str, values: object, vocab_size: int) -> None:
    for token in _entries(name, values, MAX_ENTRIES):
        _integer(name, token, 0, vocab_size - 1, "the vocabulary has no other token ids")


def _show(value: object) -> str:
    """A value in at most one short line, whatever it is."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length():,} bits"
    if isinstance(value, str):
        return ascii(value if len(value) <= 40 else value[:40] + "...")
    return repr(value) if isinstance(value, int | float | None) else f"a {type(value).__name__}"


def _error(name: str, what: str, why: str, do: str, *, code: str = "invalid_value") -> InvalidRequestError:
    return InvalidRequestError(f"{what}; {why}. {do}", param=name, code=code)


def _type_error(name: str, value: object, wanted: str) -> InvalidRequestError:
    return _error(
        name, f"{name} is {_show(value)}", f"it must be {wanted}", f"Pass {wanted}.", code="invalid_type"
    )


def _range_error(name: str, value: float, span: str, why: str) -> InvalidRequestError:
    what = "not a number" if isinstance(value, float) and math.isnan(value) else _show(value)
    return _error(name, f"{name} is {what}", why, f"Choose a value in {span}.")
