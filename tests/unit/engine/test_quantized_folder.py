"""A folder with a quantization_config is run on its own codes, natively and by the reference alike."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from penstock import LLM, SamplingParams
from penstock.engine.locate import EMBEDDED
from penstock.errors import ModelLoadError
from penstock.weights.readers.safetensors import SafetensorsReader

TINY = EMBEDDED / "penstock-tiny"
SCORED = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)


def gptq_folder(folder: Path, group: int) -> Path:
    """penstock-tiny with its layers' matrices rounded to 4 bits, packed as AutoGPTQ packs them."""
    shutil.copytree(TINY, folder)
    out = {}
    for name, stored in SafetensorsReader.read(TINY).tensors.items():
        w = np.asarray(stored).astype(np.float32)
        if w.ndim == 1 or not name.startswith("model.layers"):
            out[name] = w.astype(np.float16)
            continue
        n, k = w.shape
        groups = w.reshape(n, -1, group)
        low, high = np.minimum(groups.min(2), 0), np.maximum(groups.max(2), 0)
        scale = np.maximum((high - low) / 15, 1e-6).astype(np.float16).astype(np.float32)
        zero = np.clip(np.rint(-low / scale), 1, 15).astype(np.uint32)
        codes = np.clip(np.rint(groups / scale[:, :, None]) + zero[:, :, None], 0, 15).astype(np.uint32)
        base = name.removesuffix("weight")
        shifts = np.arange(8, dtype=np.uint32) * 4
        by_k = codes.reshape(n, k // 8, 8).transpose(1, 0, 2)
        by_n = (zero.T - 1).reshape(-1, n // 8, 8)
        out[f"{base}qweight"] = np.bitwise_or.reduce(by_k << shifts, axis=2).view(np.int32)
        out[f"{base}qzeros"] = np.bitwise_or.reduce(by_n << shifts, axis=2).astype(np.uint32).view(np.int32)
        out[f"{base}scales"] = np.ascontiguousarray(scale.T).astype(np.float16)
        out[f"{base}g_idx"] = (np.arange(k) // group).astype(np.int32)
    (folder / "model.safetensors").unlink()
    save_file(out, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["torch_dtype"] = "float16"
    config["quantization_config"] = {
        "quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": False, "sym": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def scores(model: Path, **options) -> np.ndarray:
    """Log-probability of each token of a fixed text."""
    llm = LLM(str(model), pack_cache=False, threads=1, **options)
    (output,) = llm.generate("def fib(n):\n    return n if n < 2 else fib(n - 1)", SCORED, use_tqdm=False)
    rows = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
    return np.array([row[token].logprob for token, row in rows])


@pytest.mark.parametrize("group", [32, 128])
def test_a_gptq_folder_runs_on_its_own_codes(group, tmp_path):
    folder = gptq_folder(tmp_path / "model", group)
    plan = LLM(str(folder), pack_cache=False).loaded.plan

    assert plan.weight_format == f"int4_g{group}_zero"
    assert (plan.contract, plan.is_faithful) == ("bfloat16", True)
    np.testing.assert_allclose(scores(folder), scores(folder, backend="reference"), atol=0.03)


def test_its_packed_weights_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = gptq_folder(tmp_path / "model", 32)
    loaded = LLM(str(folder), threads=1).loaded
    first = loaded.fingerprint

    assert list((tmp_path / "cache" / "penstock" / "packed").glob("*.safetensors"))
    assert LLM(str(folder), threads=1).loaded.fingerprint == first


def test_an_unknown_method_is_refused_by_name(tmp_path):
    folder = gptq_folder(tmp_path / "model", 32)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "nobody"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match="nobody"):
        LLM(str(folder), pack_cache=False)
