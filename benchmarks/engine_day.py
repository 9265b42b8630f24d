"""A day's requests through the engine's loop, without a server around it: does its process grow?

For leaks. Every kind of request that a front end can submit goes through the wire's own structs: logprobs,
scored prompts, stop strings, penalties, bans, grammars, embeddings, aborts; on a model that costs next to
nothing.
"""

import gc
import sys
import tempfile
import time
from array import array
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

from benchmarks import slope
from benchmarks.models import make, read_case
from penstock.bench.record import Row
from penstock.config import EngineConfig
from penstock.engine.assemble import make_core
from penstock.engine.build import load_model
from penstock.engine.core import EngineCore
from penstock.engine.liveness import rss_bytes
from penstock.engine.steady_memory import freeze_loaded
from penstock.engine.wire import Step, Submit, decode, encode, pack_tokens, request_of
from penstock.request import GrammarSpec, SamplingParams

CONFIG = EngineConfig(max_requests=32, max_context=1024, memory_bytes=8 << 20, threads=1)
NUM_OPEN = 40
NUM_SAMPLES = 480
KINDS: Mapping[str, tuple[int, dict[str, Any]]] = {  # how often, and what is asked for
    "plain": (60, {}),
    "abort": (8, {}),
    "logprobs": (8, {"logprobs": 3}),
    "scored prompt": (4, {"prompt_logprobs": 2}),
    "stop": (6, {"stop": ("zz", "q7")}),
    "penalties": (6, {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "min_tokens": 1}),
    "bans": (3, {"bad_words": ("ab",), "logit_bias": {5: 2.0, 9: -3.0}}),
    "grammar": (1, {}),
    "embedding": (4, {}),
}


def submit(number: int, random: Random, vocab_size: int) -> tuple[str, Submit]:
    """A request of some kind, as a front end would send it. Ids are never used twice."""
    (kind,) = random.choices(list(KINDS), [share for share, _ in KINDS.values()])
    num_prompt, num_output = random.randrange(1, 80), random.randrange(1, 12)
    params = SamplingParams(
        max_tokens=num_output, temperature=random.choice((0.0, 0.7, 1.0)), **KINDS[kind][1]
    )
    grammar = None
    if kind == "grammar":
        grammar = GrammarSpec("regex", f"[a-z ]{{1,{random.randrange(2, 60)}}}")
    return kind, Submit(
        request_id=str(number),
        prompt=pack_tokens([random.randrange(vocab_size - 2) for _ in range(num_prompt)]),
        output=b"",
        params=params,
        seed=random.randrange(2**31),
        arrival_s=time.monotonic(),
        max_output_tokens=num_output,
        stop_ids=(),
        priority=0,
        cache_salt=str(random.randrange(4)),
        bad_token_ids=((7, 8),) if kind == "bans" else (),
        num_scored_tokens=0,
        grammar=grammar,
        pooling=random.choice(("last", "mean")) if kind == "embedding" else "",
    )


def drive(core: EngineCore, num_requests: int, vocab_size: int, seed: int) -> list[slope.Point]:
    """All requests, NUM_OPEN at a time; samples of memory on the way."""
    random = Random(seed)
    xs, ys = array("d", bytes(8 * NUM_SAMPLES)), array("d", bytes(8 * NUM_SAMPLES))  # grow by nothing
    num_points = 0
    to_abort: list[str] = []
    num_begun = num_ended = 0
    told = 0.0
    while num_ended < num_requests:
        while len(core.scheduler.requests) < NUM_OPEN and num_begun < num_requests:
            kind, one = submit(num_begun, random, vocab_size)
            message = decode(encode(one))
            assert isinstance(message, Submit)
            core.add_request(request_of(message))
            num_begun += 1
            if kind == "abort":
                to_abort.append(one.request_id)
        for delta in core.step() or ():
            encode(Step([delta]))
            num_ended += delta.finish_reason is not None
        while to_abort and (len(to_abort) > NUM_OPEN or random.random() < 0.3):
            num_ended += core.abort(to_abort.pop()) is not None
        if num_points < NUM_SAMPLES and num_ended >= num_points * num_requests / NUM_SAMPLES:
            xs[num_points], ys[num_points] = num_ended, rss_bytes()
            num_points += 1
        if time.monotonic() - told > 30:
            told = time.monotonic()
            print(
                f"{num_ended:9,} requests, {rss_bytes() / 2**20:.2f} MiB, {sys.getallocatedblocks():,} "
                f"blocks, {len(gc.get_objects()):,} objects",
                flush=True,
            )
    return list(zip(xs[:num_points], ys[:num_points], strict=True))


def ask_for_a_day(num_requests: int, seed: int, row: Row) -> bool:
    """How this process grew, in the row and told; whether that is within the rule."""
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_model(str(make(read_case("micro"), Path(folder) / "micro")), CONFIG)
        core = make_core(loaded)
        freeze_loaded()
        points = drive(core, num_requests, loaded.spec.vocab_size, seed)
    return slope.judge("engine", points, row) is True
