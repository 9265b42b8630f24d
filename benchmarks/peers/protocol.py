"""A peer is one small process that loads its engine once and does what lines on its standard input say.

    -> (first line out)             {"engine": "...", "weights": "...", "weight_bytes": N}
    decode BATCH CONTEXT TOKENS     {"tokens_per_s": x}   TOKENS of each request after CONTEXT, greedy
    prefill TOKENS                  {"tokens_per_s": x}   to the first token of one fresh prompt
    embed TEXTS TOKENS              {"texts_per_s": x}    an embedding of each of so many fresh texts
    logits IDS_FILE OUT_FILE        {"rows": N}           float32 [N,V] of every token of IDS_FILE (JSON)

Standard library only: every peer's environment runs this file. What engines print goes to standard error.
"""

import json
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol


class Engine(Protocol):
    def describe(self) -> dict[str, Any]: ...

    def decode(self, prompts: list[list[int]], tokens: int) -> float:
        """Tokens per second of all requests together, once every one of them has its first token.

        The same prompts come again, so that an engine may keep what it made of them: prefill is not timed.
        """
        ...

    def prefill(self, prompt: list[int]) -> None:
        """One token after a prompt that never came before."""
        ...

    def embed(self, texts: list[list[int]]) -> None:
        """Pooled as the checkpoint says; texts that never came before, in whatever batches are quickest."""
        ...

    def logits(self, ids: list[int], out: str) -> int: ...


def prompts_of(batch: int, context: int) -> list[list[int]]:
    """The same for every engine."""
    return [random_ids(context, 1000 * context + i) for i in range(batch)]


def random_ids(count: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(300, 20000) for _ in range(count)]


def serve(make: Callable[[], Engine]) -> None:
    """Load, say so, answer line by line until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    engine = make()
    print(json.dumps(engine.describe()), file=answers)
    fresh = 1
    for line in sys.stdin:
        verb, *words = line.split()
        if verb == "decode":
            batch, context, tokens = map(int, words)
            answer: dict[str, Any] = {"tokens_per_s": engine.decode(prompts_of(batch, context), tokens)}
        elif verb == "prefill":
            prompt = random_ids(int(words[0]), -fresh)
            fresh += 1
            begin = time.perf_counter()
            engine.prefill(prompt)
            answer = {"tokens_per_s": len(prompt) / (time.perf_counter() - begin)}
        elif verb == "embed":
            count, tokens = map(int, words)
            texts = [random_ids(tokens, -fresh - i) for i in range(count)]
            fresh += count
            begin = time.perf_counter()
            engine.embed(texts)
            answer = {"texts_per_s": count / (time.perf_counter() - begin)}
        elif verb == "logits":
            with open(words[0]) as file:  # noqa: PTH123  # as plain as the rest of this file
                answer = {"rows": engine.logits(json.load(file), words[1])}
        else:
            raise SystemExit(f"no verb {verb!r}")
        print(json.dumps(answer), file=answers)
