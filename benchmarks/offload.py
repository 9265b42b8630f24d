"""What it costs to keep a share of the experts in memory and to read the others as rows ask for them.

    python -m benchmarks.offload MODEL [--weights int4] [--tokens 48] [--batches 1 8] [--shares 50 25]

MODEL is a folder (python -m benchmarks.models moe-1b --out FOLDER makes one; with random weights a router
has no favourites, which is the worst case). Each share of the experts is run twice: `warm`, the packed file
in the system's page cache, and `cold`, that cache emptied of it after every step, so that all that is missing
comes from the disk. Prints and stores decode tokens per second as a ratio to all experts in memory (medians);
how many experts were found in memory; how many of the others the layer before had asked for; and the memory
that the process has of the file.
"""

import argparse
import gc
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from penstock import LLM, SamplingParams, env
from penstock.bench import record
from penstock.engine.build import Loaded
from penstock.ops.moe import expert_mlp
from penstock.step import Executor, StepInput, StepOutput
from penstock.weights.loader import panel_bytes

PROMPT_TOKENS = 16
WARM_UP_STEPS = 8


class Clock:
    """An executor that keeps the times of steps in which every request has one token."""

    def __init__(self, executor: Executor, *, empties: bool) -> None:
        self._executor = executor
        self._paths = list((env.cache_dir() / "packed").glob("*.safetensors")) if empties else []
        self.seconds: list[float] = []

    def forward(self, step: StepInput) -> StepOutput:
        began_s = time.perf_counter()
        output = self._executor.forward(step)
        if len(step.tokens) == len(step.context_len):
            self.seconds.append(time.perf_counter() - began_s)
        for path in self._paths:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return output

    def describe(self) -> Mapping[str, str]:
        return self._executor.describe()


def layer_bytes(loaded: Loaded) -> list[int]:
    """Packed experts of each layer."""
    weights = loaded.program.weights
    layers = [call for call in loaded.program.calls if call.op is expert_mlp]
    matrices = [[weights[str(call.inputs[i]).removeprefix("weights.")] for i in (2, 4)] for call in layers]
    return [sum(u.shape[0] // 32 * panel_bytes(str(u.format), u.shape[1]) for u in uses) for uses in matrices]


def mapped_bytes() -> int:
    """Memory that this process has of packed files."""
    total, is_packed = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            is_packed = "/packed/" in line
        elif is_packed and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def decode(llm: LLM, batch: int, tokens: int, *, empties: bool) -> float:
    """Tokens per second of the median step; never of the same texts twice."""
    seed = 2 if empties else 1
    clock = Clock(llm.loaded.executor, empties=empties)
    timed = LLM.from_loaded(replace(llm.loaded, executor=clock))
    prompts = [
        {"prompt_token_ids": [11 + (97 * b + 7 * j + 1000 * seed) % 9000 for j in range(PROMPT_TOKENS)]}
        for b in range(batch)
    ]
    timed.generate(
        prompts,
        SamplingParams(max_tokens=tokens, temperature=1.0, seed=seed, ignore_eos=True),
        use_tqdm=False,
    )
    return batch / statistics.median(clock.seconds[WARM_UP_STEPS:])


def measure(args: argparse.Namespace, budget: int | None) -> list[record.Row]:
    """A row for each batch and state of the page cache."""
    options = {} if budget is None else {"expert_bytes": budget}
    llm = LLM(args.model, weights=args.weights, max_context=1024, max_requests=8, seed=1, prefix_cache=False,
              memory_bytes=256 << 20, threads=args.threads, **options)  # fmt: skip
    rows: list[record.Row] = []
    for batch in args.batches:
        for state in ("warm",) if budget is None else ("warm", "cold"):
            before = llm.loaded.executor.residency().sum(axis=0)  # type: ignore[attr-defined]
            speed = decode(llm, batch, args.tokens, empties=state == "cold")
            after = llm.loaded.executor.residency().sum(axis=0)  # type: ignore[attr-defined]
            hits, misses, foreseen = (int(x) for x in after - before)
            rows.append(
                {
                    "batch": batch,
                    "cache": state,
                    "resident": llm.loaded.plan.resident_experts,
                    "tok_s": round(speed, 2),
                    "hit_rate": round(hits / (hits + misses), 3) if hits + misses else 1.0,
                    "foreseen": round(foreseen / misses, 3) if misses else None,
                    "mapped_mb": round(mapped_bytes() / 1e6, 1),
                }
            )
    sizes = layer_bytes(llm.loaded)
    for row in rows:
        row |= {"experts_mb": round(sum(sizes) / 1e6, 1), "budget_mb": budget and round(budget / 1e6, 1)}
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--weights", default="int4")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--shares", type=int, nargs="+", default=[50, 25])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    whole = LLM(args.model, weights=args.weights, max_context=64, max_requests=1, memory_bytes=64 << 20)
    sizes = layer_bytes(whole.loaded)
    del whole
    gc.collect()
    base: dict[object, float] = {}
    for share in (100, *args.shares):
        budget = None if share == 100 else max(sizes) + -(-sum(sizes) * share // 100)
        for row in measure(args, budget):
            speed = float(str(row["tok_s"]))
            ratio = speed / base.setdefault(row["batch"], speed)
            told = {"share": share, "ratio": round(ratio, 3)} | row
            print(told, flush=True)
            if args.out:
                asked = {"case": "offload", "model": Path(args.model).name, "weights": args.weights}
                record.append(args.out, asked | told | record.stamp("auto", args.threads))
        gc.collect()
    return 0


if __name__ == "__main__":
    sys.exit(main())
