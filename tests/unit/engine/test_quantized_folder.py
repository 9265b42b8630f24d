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
from penstock.weights.reader import CodedTensor
from penstock.weights.readers.safetensors import SafetensorsReader
from penstock.weights.scheme import with_codes

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
    save_file({name: np.ascontiguousarray(t) for name, t in out.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["torch_dtype"] = "float16"
    config["quantization_config"] = {
        "quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": False, "sym": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def packed_folder(folder: Path, bits: int, group: int) -> Path:
    """The same as llm-compressor packs them, symmetric, in compressed-tensors' words."""
    shutil.copytree(TINY, folder)
    out, per_word, middle = {}, 32 // bits, 1 << (bits - 1)
    for name, stored in SafetensorsReader.read(TINY).tensors.items():
        w = np.asarray(stored).astype(np.float32)
        if w.ndim == 1 or not name.startswith("model.layers"):
            out[name] = np.asarray(stored)
            continue
        n, k = w.shape
        groups = w.reshape(n, -1, group or k)
        scale = np.maximum(np.abs(groups).max(2) / (middle - 0.5), 1e-5).astype(np.float16)
        codes = np.clip(np.rint(groups / scale.astype(np.float32)[:, :, None]), -middle, middle - 1)
        words = (codes.reshape(n, -1, per_word) + middle).astype(np.uint32)
        shifts = np.arange(per_word, dtype=np.uint32) * bits
        out[f"{name}_packed"] = np.bitwise_or.reduce(words << shifts, axis=2).view(np.int32)
        out[f"{name}_scale"], out[f"{name}_shape"] = scale, np.array([n, k])
    (folder / "model.safetensors").unlink()
    save_file(out, folder / "model.safetensors")
    strategy = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    weights = {"num_bits": bits, "type": "int", "symmetric": True, **strategy}
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def written_out(folder: Path, copy: Path) -> Path:
    """What the codes of `folder` stand for, in float32."""
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    coded = with_codes(SafetensorsReader.read(folder), config.pop("quantization_config")).tensors
    config["torch_dtype"] = "float32"
    out = {
        name: t.decode(slice(0, t.shape[0])).values() if isinstance(t, CodedTensor) else t.astype(np.float32)
        for name, t in coded.items()
    }
    (copy / "model.safetensors").unlink()
    save_file(out, copy / "model.safetensors")
    (copy / "config.json").write_text(json.dumps(config))
    return copy


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


@pytest.mark.parametrize(
    ("bits", "group", "name"), [(4, 64, "int4_g64"), (8, 32, "int8_g32"), (8, 0, "int8")]
)
def test_a_compressed_tensors_folder_runs_on_its_own_codes(bits, group, name, tmp_path):
    folder = packed_folder(tmp_path / "model", bits, group)
    plan = LLM(str(folder), pack_cache=False).loaded.plan

    assert (plan.weight_format, plan.contract, plan.is_faithful) == (name, "bfloat16", True)
    np.testing.assert_allclose(scores(folder), scores(folder, backend="reference"), atol=0.03)


@pytest.mark.parametrize(
    ("make", "args"),
    [(gptq_folder, (32,)), (gptq_folder, (128,)), (packed_folder, (8, 32)), (packed_folder, (8, 0))],
)
def test_activations_of_8_bits_are_near_what_the_codes_stand_for_in_float32(make, args, tmp_path):
    folder = make(tmp_path / "model", *args)
    true = scores(written_out(folder, tmp_path / "copy"))
    plan = LLM(str(folder), pack_cache=False, activations="int8").loaded.plan
    found = scores(folder, activations="int8")

    assert (plan.contract, plan.is_faithful) == ("int8", False)
    assert found.tobytes() != scores(folder).tobytes()
    assert np.sqrt(((found - true) ** 2).mean()) < 0.05
    np.testing.assert_allclose(found, scores(folder, activations="int8", backend="reference"), atol=0.1)


@pytest.mark.parametrize(("make", "args"), [(gptq_folder, (32,)), (packed_folder, (8, 32))])
def test_a_row_on_activations_of_8_bits_does_not_see_its_neighbours(make, args, tmp_path):
    folder = make(tmp_path / "model", *args)
    llm = LLM(str(folder), pack_cache=False, activations="int8", max_step_tokens=64, max_requests=8)
    prompts = ["def f(x):", "class A:\n    def g(self):", "import os\n" * 30, "x", "for i in range(3):"]
    params = SamplingParams(temperature=0, max_tokens=8, logprobs=0)

    def told(outputs) -> list[list[tuple[int, float]]]:
        return [
            [
                (t, row[t].logprob)
                for t, row in zip(o.outputs[0].token_ids, o.outputs[0].logprobs, strict=True)
            ]
            for o in outputs
        ]

    together = told(llm.generate(prompts, params, use_tqdm=False))
    assert together == [told(llm.generate([p], params, use_tqdm=False))[0] for p in prompts]


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
