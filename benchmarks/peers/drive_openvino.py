"""OpenVINO GenAI as a peer: drive_openvino.py IR_FOLDER THREADS. Continuous batching, its defaults."""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
from protocol import Engine, serve

CACHE_GB = 1


class OpenVino:
    def __init__(self, folder: str, threads: int) -> None:
        self._folder = Path(folder)
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = CACHE_GB
        scheduler.max_num_batched_tokens = 2048
        scheduler.max_num_seqs = 64
        scheduler.enable_prefix_caching = (
            True  # decode runs take their prompts from it; prefill runs never hit
        )
        scheduler.dynamic_split_fuse = True
        self._pipe = genai.ContinuousBatchingPipeline(
            folder, scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads}
        )
        self._next_id = 0

    def describe(self) -> dict[str, Any]:
        size = (self._folder / "openvino_model.bin").stat().st_size
        weights = self._folder.name.rpartition("-")[2]
        return {"engine": f"openvino-genai {genai.__version__}", "weights": weights, "weight_bytes": size}

    def _add(self, prompt: list[int], tokens: int) -> Any:  # a GenerationHandle, which is not exported
        config = genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = tokens
        config.ignore_eos = True
        config.do_sample = False
        config.apply_chat_template = False
        self._next_id += 1
        return self._pipe.add_request(self._next_id, ov.Tensor(np.array([prompt], np.int64)), config)

    def decode(self, prompts: list[list[int]], tokens: int) -> float:
        handles = [self._add(prompt, tokens + 1) for prompt in prompts]
        while not all(handle.can_read() for handle in handles):
            self._pipe.step()
        drawn, begin = 0, time.perf_counter()
        for handle in handles:
            handle.read()
        while self._pipe.has_non_finished_requests():
            self._pipe.step()
            end = time.perf_counter()
            drawn += sum(_num_read(handle) for handle in handles)
            if drawn >= tokens * len(prompts) - len(prompts):  # the last step may lack the early ones
                break
        while self._pipe.has_non_finished_requests():
            self._pipe.step()
        return drawn / (end - begin)

    def prefill(self, prompt: list[int]) -> None:
        handle = self._add(prompt, 1)
        while not handle.can_read():
            self._pipe.step()

    def embed(self, texts: list[list[int]]) -> None:
        raise SystemExit("embeddings are not measured against this peer")

    def logits(self, ids: list[int], out: str) -> int:
        raise SystemExit("openvino-genai gives no logits")


def _num_read(handle: Any) -> int:
    if not handle.can_read():
        return 0
    return sum(len(output.generated_ids) for output in handle.read().values())


def make() -> Engine:
    return OpenVino(sys.argv[1], int(sys.argv[2]))


if __name__ == "__main__":
    serve(make)
