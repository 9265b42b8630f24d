"""A GGUF file as a model folder: config.json and tokenizer.json made of its metadata, and where the file is.

Called by engine.locate, so that everything else reads folders alone. The folder lies in the cache under a
hash of the file's header and place, is made once, and again after any change; where the cache cannot be
written, it is a temporary one. The weights stay in the file.
"""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np

from penstock import env
from penstock.errors import ModelLoadError
from penstock.model.gguf_config import FACTOR_TENSORS, config_of
from penstock.model.pooling import pooling_files
from penstock.text.gguf_tokenizer import tokenizer_of
from penstock.weights.gguf_file import GGUFFile
from penstock.weights.gguf_splits import SPLIT, read_splits
from penstock.weights.readers.gguf import POINTER

SUFFIX: Final = ".gguf"
MADE_BY: Final = 3  # raised whenever another folder would be made of the same file
EMBEDDING: Final = "token_embd.weight"


def gguf_in(folder: Path) -> Path | None:
    """The one GGUF checkpoint in a folder, by its first split; None if there is none or a choice."""
    found = sorted(path for path in folder.glob(f"*{SUFFIX}") if path.is_file())
    splits = [SPLIT.fullmatch(path.name) for path in found]
    first = [p for p, match in zip(found, splits, strict=True) if match is None or int(match["number"]) == 1]
    return first[0] if len(first) == 1 else None


def folder_of(path: Path) -> Path:
    """The folder of a GGUF file. ModelLoadError with a code for whatever is wrong with the file."""
    path = path.resolve()
    files = read_splits(path)
    digest = hashlib.blake2b(f"{MADE_BY} {path}".encode(), digest_size=16)
    for file in files.values():
        digest.update(file.source_hash.encode())
    folder = env.cache_dir() / "gguf" / digest.hexdigest()
    if not (folder / POINTER).exists():
        contents = _contents(path, files)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder, contents)
        except OSError:
            folder = Path(tempfile.mkdtemp(prefix="penstock-gguf-"))
            _write(folder, contents)
    return folder


def _contents(path: Path, files: dict[Path, GGUFFile]) -> dict[str, dict[str, Any]]:  # Any: JSON
    metadata = next(iter(files.values())).metadata
    tensors = {name: tensor for file in files.values() for name, tensor in file.tensors.items()}
    if EMBEDDING not in tensors:
        raise ModelLoadError(
            "missing_tensor", f"{path.name}: no tensor {EMBEDDING}; this is no model of texts."
        )
    factors = {name: tensors[name] for name in FACTOR_TENSORS if name in tensors}
    for name, tensor in factors.items():
        if tensor.type.name != "F32":
            raise ModelLoadError("dtype_unsupported", f"{path.name}: {name} is {tensor.type.name}.")
    tokenizer, tokenizer_config = tokenizer_of(metadata)
    config = config_of(
        metadata,
        vocab_size=tensors[EMBEDDING].shape[0],
        tensors=frozenset(tensors),
        rope_factors={
            name: tensor.blocks.reshape(-1).view(np.float32).tolist() for name, tensor in factors.items()
        },
    )
    return {
        "config.json": config,
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": tokenizer_config,
        **pooling_files(metadata),
        POINTER: {"path": str(path)},  # last: a folder with it is whole
    }


def _write(folder: Path, contents: dict[str, dict[str, Any]]) -> None:  # Any: JSON
    for name, value in contents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=folder, encoding="utf-8", delete=False) as file:
            json.dump(value, file, ensure_ascii=False)
        os.replace(file.name, folder / name)  # noqa: PTH105 whole or not at all
