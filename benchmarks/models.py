"""Random-weight checkpoints of real shapes, written without torch: all engines load the same files.

python -m benchmarks.models llama-1b --out ~/.cache/penstock/bench/llama-1b
"""

import argparse
import json
import math
import tomllib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from penstock.model.build import build
from penstock.model.family import FAMILIES, read_model

CASES = Path(__file__).parent / "cases"
DTYPES: dict[str, tuple[str, Any]] = {
    "bfloat16": ("BF16", ml_dtypes.bfloat16),
    "float16": ("F16", np.float16),
}
SPECIALS = ["<|begin_of_text|>", "<|end_of_text|>"]


def read_case(name: str) -> dict[str, Any]:  # Any: TOML
    return tomllib.loads((CASES / f"{name}.toml").read_text())


def make(case: dict[str, Any], folder: Path) -> Path:
    """Write config, tokenizer and weights of a case into `folder`, unless they are there."""
    if (folder / "model.safetensors").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(case["config"] | {"torch_dtype": case["dtype"]}, indent=1))
    for name, content in case.get("files", {}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    _tokenizer(case["config"]["vocab_size"], folder, case.get("chat_template"))
    _weights(case, folder)
    return folder


def _tokenizer(vocab_size: int, folder: Path, chat_template: str | None) -> None:
    """A byte-level BPE of one merge, for llama.cpp wants one; filled up with words that it does not make."""
    alphabet = [chr(c) for c in _byte_alphabet()]
    vocab = {token: i for i, token in enumerate([*alphabet, "Ġw"])}
    while len(vocab) < vocab_size - len(SPECIALS):
        vocab[f"Ġw{len(vocab)}"] = len(vocab)
    added = [
        {"id": vocab_size - len(SPECIALS) + i, "content": text, "single_word": False, "lstrip": False,
         "rstrip": False,
         "normalized": False, "special": True}
        for i, text in enumerate(SPECIALS)
    ]  # fmt: skip
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": [["Ġ", "w"]], "dropout": None, "unk_token": None,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
                  "byte_fallback": False},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = {
        "bos_token": SPECIALS[0],
        "eos_token": SPECIALS[1],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    if chat_template is not None:
        config["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _byte_alphabet() -> list[int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return printable + [0x100 + i for i in range(256 - len(printable))]


def _shapes(case: dict[str, Any]) -> dict[str, tuple[tuple[int, ...], float]]:
    """The tensors that the model's own program asks for, under the checkpoint's names: shape and scale.

    normal(0, 0.02), output projections smaller by the depth, so that activations stay of order one; vectors
    are ones. For lineages that store one tensor per weight.
    """
    spec = read_model(case["config"])
    names = FAMILIES[spec.architecture].names
    program = build(
        spec, weight_format="bfloat16", head_format="bfloat16", kv_dtype="bfloat16", max_context=8
    )
    deep = 0.02 / math.sqrt(2 * spec.num_layers)
    shapes: dict[str, tuple[tuple[int, ...], float]] = {}
    for use in program.weights.values():
        shape = (use.shape[0] // len(use.sources), *use.shape[1:])  # one expert's, where there are experts
        for source in use.sources:
            scale = 0.02 if len(shape) > 1 else 0.0
            name = names.checkpoint_name(source)
            assert "[" not in name, f"{name} is a part of a tensor; such lineages are not written here"
            shapes[name] = shape, deep if source.endswith((".o", ".down")) else scale
    for table in names.gains.values():
        shapes[table] = (case["config"]["type_vocab_size"], spec.hidden_size), 0.02
    return shapes


def _weights(case: dict[str, Any], folder: Path) -> None:
    shapes = _shapes(case)
    code, kind = DTYPES[case["dtype"]]
    header: dict[str, Any] = {}
    at = 0
    for name, (shape, _) in shapes.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    generator = np.random.default_rng(case["seed"])
    with (folder / "model.safetensors.part").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape, scale in shapes.values():
            values = (
                generator.standard_normal(shape, np.float32) * np.float32(scale) if scale else np.ones(shape)
            )
            file.write(values.astype(kind).tobytes())
    (folder / "model.safetensors.part").rename(folder / "model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("case")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    print(make(read_case(options.case), options.out))


if __name__ == "__main__":
    main()
