"""Sampling flags: fields of SamplingParams that were given override what the model's authors suggest."""

import argparse
from typing import Any

import msgspec

from penstock.request import SamplingParams

NUMBERS: dict[str, tuple[type, str]] = {
    "temperature": (float, "0 always takes the most likely token"),
    "top_k": (int, "draw from the k most likely tokens; 0: all"),
    "top_p": (float, "draw from the smallest set of tokens with this probability"),
    "min_p": (float, "drop tokens below this share of the most likely one"),
    "typical_p": (float, "locally typical sampling with this probability"),
    "repetition_penalty": (float, "above 1 discourages tokens seen in prompt or answer"),
    "presence_penalty": (float, "subtracted once from tokens in the answer"),
    "frequency_penalty": (float, "subtracted per occurrence in the answer"),
    "max_tokens": (int, "longest answer, in tokens"),
    "min_tokens": (int, "no end before this many tokens"),
}


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling", "what is not given is what the model's authors suggest")
    for name, (kind, help_text) in NUMBERS.items():
        group.add_argument(
            f"--{name.replace('_', '-')}",
            type=kind,
            default=None,
            metavar="N" if kind is int else "X",
            help=help_text,
        )
    group.add_argument(
        "--stop",
        action="append",
        default=None,
        metavar="TEXT",
        help="end the answer before TEXT (repeatable)",
    )
    group.add_argument(
        "--ignore-eos", action="store_true", default=None, help="go on after the end-of-sequence token"
    )


def sampling_params(
    options: argparse.Namespace, defaults: SamplingParams, **fallback: Any
) -> SamplingParams:  # Any: fields
    """`defaults`, then `fallback`, then what was given on the command line."""
    given = {name: getattr(options, name) for name in NUMBERS if getattr(options, name) is not None}
    if options.stop:
        given["stop"] = tuple(options.stop)
    if options.ignore_eos:
        given["ignore_eos"] = True
    return msgspec.structs.replace(defaults, **{**fallback, **given})
