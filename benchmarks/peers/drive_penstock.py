"""penstock as one side of a comparison: drive_penstock.py MODEL THREADS '{"weights": "int4"}'."""

import json
import math
import sys
from typing import Any

import numpy as np
from protocol import Engine, serve

from penstock import EngineConfig, SamplingParams
from penstock.bench.workload import Bench
from penstock.engine.build import load_model
from penstock.sampling.rows import RowRequest, make_rows
from penstock.step import StepInput
from penstock.weights.format import FORMATS

LOGITS_ROWS = 32


class Penstock:
    def __init__(self, model: str, threads: int, options: dict[str, Any]) -> None:
        limits = {"max_requests": 32, "max_context": 4096, "threads": threads, "memory_bytes": 2 << 30}
        self._loaded = load_model(model, EngineConfig(**(limits | options)))
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

    def embed(self, texts: list[list[int]]) -> None:
        self._bench.llm.embed([{"prompt_token_ids": ids} for ids in texts], use_tqdm=False)

    def logits(self, ids: list[int], out: str) -> int:
        with open(out, "wb") as file:  # noqa: PTH123
            for begin in range(0, len(ids), LOGITS_ROWS):
                self._chunk(ids, begin, min(len(ids), begin + LOGITS_ROWS)).tofile(file)
        return len(ids)

    def _chunk(self, ids: list[int], begin: int, end: int) -> np.ndarray:
        """Logits of ids[begin:end], those before them being in the cache."""
        rows = np.arange(end - begin, dtype=np.int32)
        vocab_size = self._loaded.spec.vocab_size
        blocks = -(-end // self._loaded.plan.block_size)
        step = StepInput(
            tokens=np.array(ids[begin:end], np.int32),
            positions=rows + begin,
            query_start=np.array([0, len(rows)], np.int32),
            context_len=np.array([end], np.int32),
            block_tables=(np.arange(blocks, dtype=np.int32)[np.newaxis],),
            logit_rows=rows,
            sampling=make_rows([RowRequest(SamplingParams(temperature=0), 0, 0) for _ in rows], vocab_size),
            taps=("logits",),
        )
        return self._loaded.executor.forward(step).taps["logits"]


def make() -> Engine:
    return Penstock(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]))


if __name__ == "__main__":
    serve(make)
