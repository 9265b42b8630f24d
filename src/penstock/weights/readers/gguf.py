"""A GGUF file, or its splits, through the folder that engine.gguf_folder keeps for it.

`gguf.json` in that folder names the file; config.json and tokenizer.json beside it were made of its metadata.
Tensors come under the file's own names. Floats are views of the file; quantized ones are CodedTensors.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from penstock.errors import ModelLoadError
from penstock.weights.coding import CodedBlocks, CodedRows
from penstock.weights.gguf_blocks import FORMAT_OF, decode
from penstock.weights.gguf_file import GGUFFile, GGUFTensor
from penstock.weights.gguf_splits import read_splits
from penstock.weights.gguf_turned import turned_rows
from penstock.weights.reader import READERS, Checkpoint, CodedTensor, Tensor

POINTER: Final = "gguf.json"
FLOATS: Final[Mapping[str, Any]] = {  # Any: ml_dtypes' type has no common base with numpy's
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}


@READERS.register("gguf")
class GGUFReader:
    @staticmethod
    def matches(folder: Path) -> bool:
        return (folder / POINTER).exists()

    @staticmethod
    def read(folder: Path) -> Checkpoint:
        try:
            path = Path(json.loads((folder / POINTER).read_text("utf-8"))["path"])
        except (OSError, ValueError, KeyError, TypeError):
            raise ModelLoadError(
                "io_error", f"{folder / POINTER}: damaged; delete the folder, it is made again."
            ) from None
        return checkpoint_of(read_splits(path))


def checkpoint_of(files: Mapping[Path, GGUFFile]) -> Checkpoint:
    """All tensors of the splits; the first one's metadata hold for all."""
    metadata = next(iter(files.values())).metadata
    tensors = {
        name: _tensor(tensor, turned_rows(name, tensor.shape[0], metadata))
        for file in files.values()
        for name, tensor in file.tensors.items()
    }
    return Checkpoint(
        tensors,
        source_hash=_joined([file.source_hash for file in files.values()]),
        content_hash=_joined([file.content_hash for file in files.values()]),
        lineage=str(metadata.get("general.architecture")),
        stamps={path: file.stamp for path, file in files.items()},
    )


def _tensor(tensor: GGUFTensor, order: NDArray[np.intp] | None) -> Tensor:
    kind = tensor.type
    if kind.name in FLOATS:
        values: np.ndarray = tensor.blocks.reshape(-1).view(FLOATS[kind.name]).reshape(tensor.shape)
        return values if order is None else values[order]
    if len(tensor.shape) < 2:
        raise ModelLoadError(
            "shape_mismatch", f"a {kind.name} tensor has the shape {list(tensor.shape)}, which is no matrix."
        )
    return CodedTensor(
        tensor.shape, FORMAT_OF[kind.name], partial(_rows, tensor, order), partial(_blocks, tensor, order)
    )


def _blocks(tensor: GGUFTensor, order: NDArray[np.intp] | None, rows: slice) -> CodedBlocks:
    return CodedBlocks(
        tensor.type.name, tensor.blocks[rows if order is None else order[rows]], tensor.shape[-1]
    )


def _rows(tensor: GGUFTensor, order: NDArray[np.intp] | None, rows: slice) -> CodedRows:
    return decode(tensor.type, _blocks(tensor, order, rows).rows)


def _joined(hashes: list[str]) -> str:
    return hashlib.blake2b("".join(hashes).encode(), digest_size=16).hexdigest()
