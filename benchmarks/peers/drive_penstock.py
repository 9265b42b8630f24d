"""penstock as one side of a comparison: drive_penstock.py MODEL THREADS '{"weights": "int4"}'.

Besides the options of EngineConfig there is "head": a format for lm_head that the planner would not choose,
to compare like with like (llama-quantize --pure).
"""

import json
import math
import sys
from typing import Any

import msgspec
import numpy as np
from protocol import Engine, serve

from penstock import EngineConfig, SamplingParams
from penstock.bench.workload import Bench
from penstock.engine import build
from penstock.sampling.rows import RowRequest, make_rows
from penstock.step import StepInput
from penstock.weights.format import FORMATS


class Penstock:
    def __init__(self, model: str, threads: int, options: dict[str, Any]) -> None:
        limits = {"max_requests": 32, "max_context": 4096, "threads": threads, "memory_bytes": 2 << 30}
        options = limits | options
        if head := options.pop("head", None):
            planned = build.make_plan
            build.make_plan = lambda *a: msgspec.structs.replace(planned(*a), head_format=head)
        self._loaded = build.load_model(model, EngineConfig(**options))
        self._bench = Bench(self._loaded)

    def describe(self) -> dict[str, Any]:
        plan, program = self._loaded.plan, self._loaded.program
        weight_bytes = sum(
            math.prod(use.shape) * FORMATS[use.format].bytes_per_weight(use.shape[-1])
            for use in program.weights.values()
            if use.format is not None
        )
        return {
            "engine": "penstock", "weights": plan.weight_format, "head": plan.head_format, "isa": plan.isa,
            "weight_bytes": round(weight_bytes), "fingerprint": self._loaded.fingerprint,
        }  # fmt: skip

    def decode(self, prompts: list[list[int]], tokens: int) -> float:
        params = SamplingParams(max_tokens=tokens + 1, temperature=0, ignore_eos=True)
        steps = self._bench.steps_of([{"prompt_token_ids": ids} for ids in prompts], params)
        whole = [s for s in steps if s.num_rows == s.num_logit_rows == len(prompts)]
        return (len(whole) - 1) * len(prompts) / (whole[-1].begin_s - whole[0].begin_s)

    def prefill(self, prompt: list[int]) -> None:
        params = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True)
        self._bench.llm.generate({"prompt_token_ids": prompt}, params, use_tqdm=False)

    def logits(self, ids: list[int], out: str) -> int:
        rows = np.arange(len(ids), dtype=np.int32)
        vocab_size = self._loaded.spec.vocab_size
        blocks = -(-len(ids) // self._loaded.plan.block_size)
        step = StepInput(
            tokens=np.array(ids, np.int32),
            positions=rows,
            query_start=np.array([0, len(ids)], np.int32),
            context_len=np.array([len(ids)], np.int32),
            block_tables=(np.arange(blocks, dtype=np.int32)[np.newaxis],),
            logit_rows=rows,
            sampling=make_rows([RowRequest(SamplingParams(temperature=0), 0, 0) for _ in ids], vocab_size),
            taps=("logits",),
        )
        self._loaded.executor.forward(step).taps["logits"].astype(np.float32).tofile(out)
        return len(ids)


def make() -> Engine:
    return Penstock(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]))


if __name__ == "__main__":
    serve(make)
