"""Answers as bytes, and where two of them differ.

Everything a user could see is compared, floats by their bits, and the logits of every row that drew a token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from penstock.request import CompletionOutput, Logprob, RequestOutput

LogitDigests = Mapping[int, bytes]  # output position -> digest of the raw logits of the row that drew it


@dataclass(frozen=True, slots=True)
class Completion:
    """One of a call's n completions, down to the bits."""

    token_ids: tuple[int, ...]
    text: str
    ending: tuple[str | None, int | str | None]
    logprobs: tuple[bytes, ...]
    cumulative_logprob: bytes
    logits: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One call's answer, down to the bits."""

    prompt_token_ids: tuple[int, ...]
    prompt_logprobs: tuple[bytes, ...]
    completions: tuple[Completion, ...]


def outcome(answer: RequestOutput, logits: Sequence[LogitDigests]) -> Outcome:
    """`logits`: for each of the answer's completions, by its seed."""
    assert answer.finished
    prompt_logprobs = [] if answer.prompt_logprobs is None else answer.prompt_logprobs
    return Outcome(
        tuple(answer.prompt_token_ids),
        tuple(_bits(row or {}) for row in prompt_logprobs),
        tuple(completion(one, digests) for one, digests in zip(answer.outputs, logits, strict=True)),
    )


def differences(expected: Sequence[Outcome], found: Sequence[Outcome | None]) -> list[str]:
    """One line for each thing that differs. None: the call was aborted, so there is nothing to compare."""
    lines: list[str] = []
    for index, (one, other) in enumerate(zip(expected, found, strict=True)):
        if other is None or one == other:
            continue
        lines += _places(f"request {index}: prompt_logprobs", one.prompt_logprobs, other.prompt_logprobs)
        for n, (mine, theirs) in enumerate(zip(one.completions, other.completions, strict=True)):
            for name in Completion.__slots__:
                where = f"request {index} completion {n}: {name}"
                a, b = getattr(mine, name), getattr(theirs, name)
                if isinstance(a, tuple) and name != "ending":
                    lines += _places(where, a, b)
                elif a != b:
                    lines.append(f"{where}: {a!r} became {b!r}")
        if one.prompt_token_ids != other.prompt_token_ids:
            lines.append(f"request {index}: another prompt")
    return lines


def completion(output: CompletionOutput, digests: LogitDigests) -> Completion:
    """`digests` are of the output's own tokens; a replayed request begins at a later position."""
    assert len(digests) == len(output.token_ids), "a row of logits for every token"
    return Completion(
        tuple(output.token_ids),
        output.text,
        (output.finish_reason, output.stop_reason),
        tuple(_bits(row) for row in output.logprobs or ()),
        np.float64(np.nan if output.cumulative_logprob is None else output.cumulative_logprob).tobytes(),
        tuple(digests[position] for position in sorted(digests)),
    )


def _bits(row: Mapping[int, Logprob]) -> bytes:
    """Ids, ranks and float32 bits in the order given; the decoded texts follow from the ids."""
    ids = np.array([(token, entry.rank) for token, entry in row.items()], np.int32)
    values = [entry.logprob for entry in row.values()]
    as_float32 = np.array(values, np.float32)
    assert as_float32.astype(np.float64).tolist() == values, "a logprob is a float32"
    return ids.tobytes() + as_float32.tobytes()


def _places(where: str, a: Sequence[object], b: Sequence[object]) -> list[str]:
    if len(a) != len(b):
        return [f"{where}: {len(a)} became {len(b)}"]
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), None)
    return [] if at is None else [f"{where} [{at} of {len(a)}]: {_short(a[at])} became {_short(b[at])}"]


def _short(value: object) -> str:
    return value.hex()[:24] if isinstance(value, bytes) else repr(value)[:40]
