"""A small checkpoint that can be served, and the ways to spoil it."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

GOLDEN = Path(__file__).parents[2] / "goldens" / "parity" / "llama2"
MATRIX = "model.layers.1.mlp.up_proj.weight"
Spoil = Callable[[Path], object]


def make_checkpoint(folder: Path) -> Path:
    """The random Llama of the parity goldens, with one token per byte."""
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / name, folder / name)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {letter: 3 + i for i, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def nothing(folder: Path) -> None:
    """Leave it as it is."""


def config(**changes: Any) -> Spoil:  # Any: JSON
    """Set keys of config.json."""

    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return spoil


def written(name: str, content: bytes | str) -> Spoil:
    """Replace a file."""
    return lambda folder: (folder / name).write_bytes(
        content.encode() if isinstance(content, str) else content
    )


def removed(name: str) -> Spoil:
    return lambda folder: (folder / name).unlink()


def tensors(change: Callable[[dict[str, np.ndarray]], object]) -> Spoil:
    """Change the tensors by name."""

    def spoil(folder: Path) -> None:
        path = folder / "model.safetensors"
        held = {name: tensor.copy() for name, tensor in load_file(path).items()}
        change(held)
        save_file(held, path)

    return spoil


def element(name: str, value: float) -> Spoil:
    """Set the last value of a tensor."""
    return tensors(lambda held: held[name].reshape(-1).__setitem__(-1, value))


def cut(num_bytes: int) -> Spoil:
    """Shorten the weights, as an interrupted download leaves them."""

    def spoil(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-num_bytes])

    return spoil


def sharded(*, lost: str = "", after: Spoil = nothing) -> Spoil:
    """Two shards and their index; `lost` is deleted, `after` runs last."""

    def spoil(folder: Path) -> None:
        held = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names = sorted(held)
        places: Mapping[str, str] = {
            name: f"model-0000{1 + (i >= len(names) // 2)}-of-00002.safetensors"
            for i, name in enumerate(names)
        }
        for shard in set(places.values()):
            save_file({name: held[name] for name in names if places[name] == shard}, folder / shard)
        index = {"metadata": {}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        if lost:
            (folder / lost).unlink()
        after(folder)

    return spoil
