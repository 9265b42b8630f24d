"""What llama.cpp's own converter makes of a tiny model of each family answers as the model.

Needs torch, transformers and llama.cpp's sources: LLAMA_CPP_SOURCE names their folder. Left out: what the
converter itself cannot do with a tiny model (layers without experts among others, StableLM's norms of heads).
"""

import importlib
import json
import os
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from penstock import LLM, SamplingParams

pytestmark = pytest.mark.oracle
SOURCE = os.environ.get("LLAMA_CPP_SOURCE")
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "mscale": 1.2, "mscale_all_dim": 1.2, "factor": 8.0,
        "original_max_position_embeddings": 64}  # fmt: skip
OTHERWISE: dict[str, dict[str, Any]] = {  # Any: JSON; what the converter takes for granted
    "falcon_7b": {"num_kv_heads": 1},
    "gemma2": {"query_pre_attn_scalar": 24},
    "gemma3": {
        "num_hidden_layers": 7, "layer_types": None, "sliding_window_pattern": 6,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "gpt2": {"n_inner": None},
    "olmoe": {"rms_norm_eps": 1e-5},
    "phi3": {"original_max_position_embeddings": 512},
    "qwen2_moe": {"mlp_only_layers": []},
    "deepseek_v2": {"attention_bias": False, "rope_parameters": YARN},
    "mamba2_groups": {"time_step_limit": (0.0, float("inf"))},
}  # fmt: skip
FIXED_WIDTH = ("bloom", "falcon_7b", "falcon_new")  # their MLP is four times the model wide
MODELS = (
    "llama2", "mixtral", "qwen3", "qwen2_moe", "qwen3_moe", "olmoe", "olmo2", "gemma", "gemma2", "gemma3",
    "phi3", "granite", "command_r", "command_r_plus", "stablelm", "starcoder2", "pythia",
    "gpt_neox_sequential", "gpt2", "bloom", "falcon_7b", "falcon_new", "deepseek_v2", "deepseek_v2_lite",
    "deepseek_v3", "mamba2", "mamba2_groups",
)  # fmt: skip
OTHER_VOCABULARIES = {
    "gemma": "GemmaModel Gemma2Model",
    "phi": "Phi3MiniModel",
    "llama": "LlamaModel",
}  # converters that look for SentencePiece
ENCODERS = Path(__file__).parents[1] / "goldens" / "encoders"
PROMPT = {"prompt_token_ids": [5, 9, 30, 77, 12, 60, 61, 3, 8, 90]}
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
SPLIT = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def write_model(name: str, folder: Path) -> None:
    """A random model, and a byte-level tokenizer of one merge."""
    from tools.goldens.make_parity import random_model
    from tools.goldens.parity_models import MODELS as TINY
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind, arguments, *_ = TINY[name]
    arguments = {
        key: value
        for key, value in (arguments | OTHERWISE.get(name, {})).items()
        if (value is not None or key == "pad_token_id")
        and not (name in FIXED_WIDTH and key == "ffn_hidden_size")
    }
    config = kind(**arguments, dtype="float32")
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
    random_model(config, 0).save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text())
    if name == "gpt2":
        values["n_ctx"] = values["n_positions"]
    if name == "gemma3":
        values["sliding_window_pattern"] = 6
    if name == "deepseek_v3":
        values["scoring_func"] = "sigmoid"  # which published files say
    (folder / "config.json").write_text(json.dumps(values))
    write_tokenizer(folder, config.vocab_size)


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    letters = [chr(code) for code in [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]]
    vocab = {letter: i for i, letter in enumerate(letters[: vocab_size - 2])} | {'!"': 0}
    vocab['!"'] = len(vocab) - 1
    while len(vocab) < vocab_size:
        vocab[f"Ġw{len(vocab)}"] = len(vocab)
    tokenizer = {
        "version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": SPLIT,
        "post_processor": None, "decoder": SPLIT,
        "model": {"type": "BPE", "vocab": vocab, "merges": [["!", '"']]},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


def convert(folder: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The converter, told that every tokenizer is GPT-2's, with what its config.json once said."""
    assert SOURCE is not None
    monkeypatch.setattr(sys, "path", [SOURCE, f"{SOURCE}/gguf-py", *sys.path])
    text = importlib.import_module("conversion.base").TextModel
    monkeypatch.setattr(text, "get_vocab_base_pre", lambda *_: "gpt-2")
    for module, kinds in OTHER_VOCABULARIES.items():
        for kind in kinds.split():
            own = getattr(importlib.import_module(f"conversion.{module}"), kind)
            monkeypatch.setattr(own, "set_vocab", lambda self: self._set_vocab_gpt2())
    neox = importlib.import_module("conversion.gptneox").GPTNeoXModel
    plain = neox.set_gguf_parameters

    def with_share(self: Any) -> None:  # Any: the converter is untyped
        self.hparams["rotary_pct"] = self.hparams["rope_parameters"].get("partial_rotary_factor", 0.25)
        plain(self)

    monkeypatch.setattr(neox, "set_gguf_parameters", with_share)
    monkeypatch.setattr(sys, "argv", ["convert", str(folder), "--outtype", "f32", "--outfile", str(path)])
    runpy.run_path(f"{SOURCE}/convert_hf_to_gguf.py", run_name="__main__")


def answer(model: Path) -> list[int]:
    llm = LLM(str(model), pack_cache=False, threads=1, memory_bytes=64 << 20)
    return llm.generate(PROMPT, GREEDY, use_tqdm=False)[0].outputs[0].token_ids


@pytest.mark.skipif(SOURCE is None, reason="LLAMA_CPP_SOURCE names no folder")
@pytest.mark.parametrize("name", MODELS)
def test_the_file_answers_as_the_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, path = tmp_path / name, tmp_path / f"{name}.gguf"
    write_model(name, folder)
    convert(folder, path, monkeypatch)

    assert answer(path) == answer(folder)


@pytest.mark.skipif(SOURCE is None, reason="LLAMA_CPP_SOURCE names no folder")
@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_an_encoders_file_embeds_as_its_folder(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    """The numbers alone: their tokens are ids, since neither has a tokenizer of its kind here."""
    pytest.importorskip("torch")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, path = shutil.copytree(ENCODERS / name, tmp_path / name), tmp_path / f"{name}.gguf"
    config = json.loads((folder / "config.json").read_text())
    write_tokenizer(folder, config["vocab_size"])
    convert(folder, path, monkeypatch)
    vectors = []
    for model in (path, folder):
        llm = LLM(str(model), pack_cache=False, threads=1, memory_bytes=64 << 20)
        vectors.append(llm.embed(PROMPT, use_tqdm=False, pooling="cls")[0].outputs.embedding)

    assert vectors[0] == vectors[1]
