"""Of a Gemma 3 with an image encoder the text model is read: it answers as the same model without images."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from penstock import LLM, SamplingParams
from penstock.errors import ModelLoadError
from penstock.model.family import read_model

GOLDEN = Path(__file__).parents[2] / "goldens" / "parity" / "gemma3"
PROMPT = {"prompt_token_ids": [5, 9, 30, 77, 12, 60]}
GREEDY = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
OLD = {"model.": "language_model.model."}
NEW = {"model.": "model.language_model."}


def tokenizer(folder: Path, size: int) -> None:
    flags = dict.fromkeys(("special", "normalized", "single_word", "lstrip", "rstrip"), False)
    added = [{"id": i, "content": f"t{i}", **flags} for i in range(size)]
    model = {"type": "BPE", "vocab": {}, "merges": []}
    (folder / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": added}))


def with_images(folder: Path, spelling: dict[str, str], **more: object) -> Path:
    text = json.loads((GOLDEN / "config.json").read_text())
    size = text["vocab_size"]
    text.pop("architectures")
    dtype = text.pop("dtype", "float32")
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"], "text_config": text, "dtype": dtype,
        "vision_config": {"hidden_size": 8}, "mm_tokens_per_image": 4, "image_token_index": 262144,
        "tie_word_embeddings": text.pop("tie_word_embeddings", True), **more,
    }  # fmt: skip
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer(folder, size)
    tensors = {}
    for name, tensor in load_file(GOLDEN / "model.safetensors").items():
        (old, new), *_ = spelling.items()
        tensors[f"language_model.{name}" if name.startswith("lm_head") else name.replace(old, new, 1)] = (
            tensor
        )
    front = "model." if spelling is NEW else ""
    for name in ("vision_tower.post_layernorm.weight", "multi_modal_projector.mm_soft_emb_norm.weight"):
        tensors[front + name] = tensor
    save_file(tensors, folder / "model.safetensors")
    return folder


def llm_of(folder: Path) -> LLM:
    return LLM(str(folder), threads=1, memory_bytes=64 << 20, max_context=256)


@pytest.mark.parametrize("spelling", [OLD, NEW], ids=["transformers 4", "transformers 5"])
def test_the_text_model_answers_as_alone_and_a_line_says_what_is_left_out(spelling, tmp_path):
    alone = shutil.copytree(GOLDEN, tmp_path / "alone")
    tokenizer(alone, json.loads((alone / "config.json").read_text())["vocab_size"])
    llm = llm_of(with_images(tmp_path / "images", spelling))
    (answer,) = llm.generate(PROMPT, GREEDY, use_tqdm=False)
    (expected,) = llm_of(alone).generate(PROMPT, GREEDY, use_tqdm=False)

    assert answer.outputs[0].token_ids == expected.outputs[0].token_ids
    assert any("image encoder" in note for note in llm.loaded.notes)


def test_an_unknown_key_of_either_config_is_refused_by_name(tmp_path):
    with pytest.raises(ModelLoadError, match="surprise"):
        read_model(with_images(tmp_path / "outer", OLD, surprise=1))
    folder = with_images(tmp_path / "inner", OLD)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["surprise"] = 1
    with pytest.raises(ModelLoadError, match=r"text_config\.surprise"):
        read_model(config)
    config.pop("text_config")
    with pytest.raises(ModelLoadError, match="text_config"):
        read_model(config)
