"""A GGUF file of every family answers as the folder that it was made of."""

import contextlib
import json
import random
import shutil
from pathlib import Path

import numpy as np
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
    "deepseek_v2": "deepseek2",
    "deepseek_v2_lite": "deepseek2",
    "deepseek_v3": "deepseek2",
    "mamba2": "mamba2",
    "mamba2_groups": "mamba2",
}
ENCODERS = ("bert", "roberta", "xlm_roberta")
OTHER_NAMES = {"deepseek3"}  # "deepseek2" in files
CONVERTED = {"mixtral", "gemma3", "qwen2moe"}  # "llama" in files; the others in test_llamacpp_converter.py
PROMPT = {"prompt_token_ids": [5, 9, 30, 77, 12, 60, 61, 3, 8, 90]}
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def answer(model: Path, **options) -> list[int]:
    llm = LLM(str(model), pack_cache=False, threads=1, memory_bytes=64 << 20, **options)
    return llm.generate(PROMPT, GREEDY, use_tqdm=False)[0].outputs[0].token_ids


def folder_of(golden: str, tmp_path: Path) -> Path:
    """The golden, with a tokenizer that has its ids."""
    kind = "encoders" if golden in ENCODERS else "parity"
    folder = shutil.copytree(GOLDENS.parent / kind / golden, tmp_path / golden)
    config = json.loads((folder / "config.json").read_text())
    config.pop("time_step_limit", None)  # what no file can say
    scaling = config.get("rope_parameters") or {}
    if "mscale_all_dim" in scaling:
        scaling["mscale"] = scaling["mscale_all_dim"]  # files have one for both
    (folder / "config.json").write_text(json.dumps(config))
    size = config["vocab_size"]
    added = [
        {"id": i, "content": f"t{i}", "special": False, "normalized": False, "single_word": False,
         "lstrip": False, "rstrip": False} for i in range(size)
    ]  # fmt: skip
    model = {"type": "BPE", "vocab": {}, "merges": []}
    (folder / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": added}))
    return folder


def test_every_architecture_of_the_table_is_tried_here():
    assert set(FAMILIES.values()) | CONVERTED | OTHER_NAMES | {"bert"} == set(ARCHITECTURES)


@pytest.mark.parametrize("golden", FAMILIES)
def test_a_file_of_floats_answers_as_its_folder(golden, tmp_path):
    folder = folder_of(golden, tmp_path)
    path = tmp_path / "model.gguf"
    write_family(folder, path, FAMILIES[golden])

    assert answer(path) == answer(folder)


@pytest.mark.parametrize("golden", ["deepseek_v2", "deepseek_v2_lite", "deepseek_v3"])
def test_keys_and_values_in_one_matrix_as_the_first_files_have_them_are_taken_apart(golden, tmp_path):
    folder = folder_of(golden, tmp_path)
    path = tmp_path / "model.gguf"
    write_family(folder, path, "deepseek2", is_first=True)

    assert answer(path) == answer(folder)


@pytest.mark.parametrize("golden", ENCODERS)
def test_an_encoders_file_embeds_as_its_folder(golden, tmp_path):
    folder = folder_of(golden, tmp_path)
    path = tmp_path / "model.gguf"
    write_family(folder, path, "bert", pooling_type=2)
    vectors = []
    for model in (path, folder):
        llm = LLM(str(model), pack_cache=False, threads=1, memory_bytes=64 << 20)
        vectors.append(llm.embed(PROMPT, use_tqdm=False, pooling="cls")[0].outputs.embedding)

    assert vectors[0] == vectors[1]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"expert_count": 160}, (8, 3, "group_limited_greedy")),
        ({"expert_count": 64}, (1, 1, "greedy")),
        ({"expert_count": 64, "expert_group_count": 4, "expert_group_used_count": 2}, (4, 2)),
        ({"expert_count": 256, "expert_gating_func": 2}, (8, 4, "noaux_tc")),
        ({"expert_count": 64, "expert_gating_func": 2}, (1, 1, "noaux_tc")),
    ],
)
def test_groups_of_experts_that_a_file_does_not_say_are_those_that_were_published(keys, expected):
    from penstock.model.gguf_config import config_of

    metadata = {"general.architecture": "deepseek2", "deepseek2.attention.kv_lora_rank": 512}
    metadata |= {f"deepseek2.{key}": value for key, value in keys.items()}
    found = config_of(metadata, vocab_size=8, tensors=frozenset(), rope_factors={})

    assert (found["n_group"], found["topk_group"], found["topk_method"])[: len(expected)] == expected
    assert (found["q_lora_rank"], found["norm_topk_prob"]) == (None, False)


@pytest.mark.parametrize(
    "golden", ["qwen3_moe", "olmoe", "falcon_new", "pythia", "llama2", "deepseek_v2", "deepseek_v3", "mamba2"]
)
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


def test_a_score_of_experts_that_is_not_known_is_refused():
    from penstock.model.gguf_config import config_of

    metadata = {"general.architecture": "deepseek2", "deepseek2.expert_gating_func": 4}
    with pytest.raises(ModelLoadError, match="expert_gating_func"):
        config_of(metadata, vocab_size=8, tensors=frozenset(), rope_factors={})


@pytest.mark.parametrize("architecture", ["llama", "deepseek2", "mamba2", "bert", "phi3"])
def test_foreign_values_of_every_key_are_read_or_refused_in_words(architecture):
    from penstock.errors import PenstockError
    from penstock.model.family import read_model
    from penstock.model.gguf_architectures import KEYS, READ
    from penstock.model.gguf_config import config_of

    foreign = [0, -1, 1 << 40, 0.5, float("nan"), True, "x", ["a"], np.arange(3)]
    draw = random.Random(architecture)
    keys = sorted({*KEYS, *ARCHITECTURES[architecture].keys, *READ})
    for _ in range(300):
        metadata = {"general.architecture": architecture}
        for key in draw.sample(keys, draw.randint(0, len(keys))):
            plain = draw.choice([1, 2, 4, 64, 128])
            metadata[f"{architecture}.{key}"] = draw.choice([plain, plain, *foreign])
        with contextlib.suppress(PenstockError):
            found = config_of(metadata, vocab_size=64, tensors=frozenset(), rope_factors={})
            read_model(json.loads(json.dumps(found)))


def test_heads_that_are_not_the_width_over_their_number_are_refused_where_nobody_reads_them():
    from penstock.model.gguf_config import config_of

    metadata = {
        "general.architecture": "gptneox", "gptneox.embedding_length": 64, "gptneox.attention.head_count": 4,
        "gptneox.attention.key_length": 32,
    }  # fmt: skip
    with pytest.raises(ModelLoadError, match="key_length"):
        config_of(metadata, vocab_size=8, tensors=frozenset(), rope_factors={})
