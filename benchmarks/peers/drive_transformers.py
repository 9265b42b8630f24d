"""transformers as a peer: drive_transformers.py MODEL THREADS DTYPE.

An own loop over its cache, which is leaner than generate().
"""

import copy
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from protocol import Engine, serve


class Transformers:
    def __init__(self, model: str, threads: int, dtype: str) -> None:
        torch.set_num_threads(threads)
        pooling = Path(model) / "1_Pooling" / "config.json"
        kind = transformers.AutoModel if pooling.exists() else transformers.AutoModelForCausalLM
        # its default attention is sdpa, where the architecture has any
        self._model = kind.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
        self._takes_last = pooling.exists() and "pooling_mode_lasttoken" in json.loads(pooling.read_text())
        self._file = Path(model) / "model.safetensors"
        self._dtype = dtype
        self._cache = "cache_params" if "mamba" in self._model.config.model_type else "past_key_values"
        self._kept: dict[tuple[int, int], Any] = {}

    def describe(self) -> dict[str, Any]:
        version = f"transformers {transformers.__version__}, torch {torch.__version__}"
        size = self._file.stat().st_size
        return {"engine": version, "weights": self._dtype, "weight_bytes": size}

    @torch.inference_mode()
    def decode(self, prompts: list[list[int]], tokens: int) -> float:
        key, kind = (len(prompts), len(prompts[0])), self._cache
        if key not in self._kept:
            out = self._model(input_ids=torch.tensor(prompts), use_cache=True, logits_to_keep=1)
            self._kept = {key: (getattr(out, kind), out.logits[:, -1].argmax(-1, keepdim=True))}
        cache, ids = copy.deepcopy(self._kept[key])
        begin = time.perf_counter()
        for _ in range(tokens):
            out = self._model(input_ids=ids, use_cache=True, **{kind: cache})
            ids = out.logits[:, -1].argmax(-1, keepdim=True)
        return tokens * len(prompts) / (time.perf_counter() - begin)

    @torch.inference_mode()
    def prefill(self, prompt: list[int]) -> None:
        self._model(input_ids=torch.tensor([prompt]), use_cache=True, logits_to_keep=1).logits.argmax().item()

    @torch.inference_mode()
    def embed(self, texts: list[list[int]]) -> None:
        """All of one length, so that nothing is padded; the last row or the first."""
        rows = self._model(input_ids=torch.tensor(texts)).last_hidden_state
        rows = rows[:, -1] if self._takes_last else rows[:, 0]
        torch.nn.functional.normalize(rows.float(), dim=1).numpy()

    @torch.inference_mode()
    def logits(self, ids: list[int], out: str) -> int:
        self._model(input_ids=torch.tensor([ids])).logits[0].float().numpy().tofile(out)
        return len(ids)


def make() -> Engine:
    return Transformers(sys.argv[1], int(sys.argv[2]), sys.argv[3])


if __name__ == "__main__":
    serve(make)
