"""A checkpoint whose experts are MXFP4 answers as the copy in which they are written out as bfloat16."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tests.exactness.checkpoints import SHAPES, write_checkpoint

from penstock import LLM, SamplingParams

pytest.importorskip("penstock._native", reason="this build has no native backend")

FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
PROMPT = {"prompt_token_ids": [9 + (37 * i) % 400 for i in range(70)]}
PARAMS = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True, logprobs=4)


def written_out(folder: Path, copy: Path) -> Path:
    """Every code times its power of two, which bfloat16 holds, turned as copies in bfloat16 are."""
    copy.mkdir()
    for path in folder.iterdir():
        if path.suffix == ".json":
            (copy / path.name).write_bytes(path.read_bytes())
    config = json.loads((copy / "config.json").read_text())
    del config["quantization_config"]
    (copy / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    table = np.array(FP4_VALUES, np.float32)
    for name in [name for name in tensors if name.endswith("_blocks")]:
        blocks, scales = tensors.pop(name), tensors.pop(name.replace("_blocks", "_scales"))
        pairs = np.stack([table[blocks & 15], table[blocks >> 4]], axis=-1).reshape(*blocks.shape[:3], 32)
        wide = np.ldexp(pairs, scales.astype(np.int32)[..., None] - 127).reshape(*blocks.shape[:2], -1)
        half = wide.astype(ml_dtypes.bfloat16)
        assert (half.astype(np.float32) == wide).all()
        tensors[name.removesuffix("_blocks")] = np.ascontiguousarray(half.swapaxes(1, 2))
    save_file(tensors, copy / "model.safetensors")
    return copy


def test_codes_and_what_they_stand_for_answer_alike(tmp_path):
    coded = write_checkpoint(tmp_path / "coded", SHAPES["gpt_oss_mxfp4"])
    options = {"max_context": 256, "max_requests": 2, "memory_bytes": 32 << 20, "pack_cache": False}
    outputs = []
    for folder in (coded, written_out(coded, tmp_path / "wide")):
        llm = LLM(str(folder), **options)
        assert llm.loaded.plan.is_faithful
        assert (llm.loaded.plan.weight_format, llm.loaded.plan.contract) == (
            ("mxfp4", "bfloat16") if folder == coded else ("bfloat16", "bfloat16")
        )
        outputs.append(llm.generate([PROMPT], PARAMS, use_tqdm=False)[0].outputs[0])
    codes, wide = outputs

    assert codes.token_ids == wide.token_ids
    for one, other in zip(codes.logprobs, wide.logprobs, strict=True):
        for token, entry in one.items():  # sums of groups of 32, and of all K
            assert entry.logprob == pytest.approx(other[token].logprob, abs=2e-2)
