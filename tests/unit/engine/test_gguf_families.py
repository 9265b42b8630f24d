"""A GGUF file of every family answers as the folder that it was made of."""

import json
import shutil
from pathlib import Path

import pytest

from penstock import LLM, SamplingParams
from penstock.errors import ModelLoadError
from penstock.model.gguf_architectures import ARCHITECTURES

pytest.importorskip("gguf", reason="the gguf package writes the files; install the dev extra")

from tests.fakes.gguf_families import write_family

GOLDENS = Path(__file__).parents[2] / "goldens" / "parity"
FAMILIES = {  # golden -> architecture of GGUF
    "llama2": "llama",
    "mixtral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "olmoe": "olmoe",
    "olmo2": "olmo2",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "phi3": "phi3",
    "granite": "granite",
    "command_r": "command-r",
    "command_r_plus": "command-r",
    "stablelm": "stablelm",
    "stablelm_12b": "stablelm",
    "starcoder2": "starcoder2",
    "pythia": "gptneox",
    "gpt_neox_sequential": "gptneox",
    "gpt2": "gpt2",
    "bloom": "bloom",
    "falcon_7b": "falcon",
    "falcon_new": "falcon",
}
CONVERTED = {"mixtral", "gemma3", "qwen2moe"}  # "llama" in files; the others in test_llamacpp_converter.py
PROMPT = {"prompt_token_ids": [5, 9, 30, 77, 12, 60, 61, 3, 8, 99]}
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def answer(model: Path, **options) -> list[int]:
    llm = LLM(str(model), pack_cache=False, threads=1, memory_bytes=64 << 20, **options)
    return llm.generate(PROMPT, GREEDY, use_tqdm=False)[0].outputs[0].token_ids


def folder_of(golden: str, tmp_path: Path) -> Path:
    """The golden, with a tokenizer that has its ids."""
    folder = shutil.copytree(GOLDENS / golden, tmp_path / golden)
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    added = [
        {"id": i, "content": f"t{i}", "special": False, "normalized": False, "single_word": False,
         "lstrip": False, "rstrip": False} for i in range(size)
    ]  # fmt: skip
    model = {"type": "BPE", "vocab": {}, "merges": []}
    (folder / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": added}))
    return folder


def test_every_architecture_of_the_table_is_tried_here():
    assert set(FAMILIES.values()) | CONVERTED == set(ARCHITECTURES)


@pytest.mark.parametrize("golden", FAMILIES)
def test_a_file_of_floats_answers_as_its_folder(golden, tmp_path):
    folder = folder_of(golden, tmp_path)
    path = tmp_path / "model.gguf"
    write_family(folder, path, FAMILIES[golden])

    assert answer(path) == answer(folder)


@pytest.mark.parametrize("golden", ["qwen3_moe", "olmoe", "falcon_new", "pythia", "llama2"])
def test_codes_of_fused_and_stacked_tensors_are_read_where_they_lie(golden, tmp_path):
    folder = folder_of(golden, tmp_path)
    path = tmp_path / "model.gguf"
    write_family(folder, path, FAMILIES[golden], "Q8_0")

    assert answer(path) == answer(path, backend="reference")


@pytest.mark.parametrize(("kind", "pooling"), [(1, "mean"), (2, "cls"), (3, "last")])
def test_how_embeddings_are_pooled_is_read_from_the_file(kind, pooling, tmp_path):
    path = tmp_path / "model.gguf"
    write_family(folder_of("qwen3", tmp_path), path, "qwen3", pooling_type=kind)
    llm = LLM(str(path), pack_cache=False, threads=1, memory_bytes=64 << 20)
    found, asked = (llm.embed(PROMPT, use_tqdm=False, pooling=how)[0].outputs for how in (None, pooling))

    assert llm.loaded.pooling.pooling == pooling
    assert found.embedding == asked.embedding


def test_a_reranker_is_refused_by_its_pooling(tmp_path):
    path = tmp_path / "model.gguf"
    write_family(folder_of("qwen3", tmp_path), path, "qwen3", pooling_type=4)
    with pytest.raises(ModelLoadError, match="pooling_type"):
        LLM(str(path))


def test_a_key_of_another_architecture_is_refused_by_name(tmp_path):
    from penstock.model.gguf_config import config_of

    metadata = {"general.architecture": "gpt2", "gpt2.attention.sliding_window": 128}
    with pytest.raises(ModelLoadError, match=r"gpt2\.attention\.sliding_window"):
        config_of(metadata, vocab_size=8, tensors=frozenset(), rope_factors={})


def test_heads_that_are_not_the_width_over_their_number_are_refused_where_nobody_reads_them():
    from penstock.model.gguf_config import config_of

    metadata = {
        "general.architecture": "gptneox", "gptneox.embedding_length": 64, "gptneox.attention.head_count": 4,
        "gptneox.attention.key_length": 32,
    }  # fmt: skip
    with pytest.raises(ModelLoadError, match="key_length"):
        config_of(metadata, vocab_size=8, tensors=frozenset(), rope_factors={})
