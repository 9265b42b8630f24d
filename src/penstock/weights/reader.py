"""The seam of checkpoint readers: a folder's tensors by name, mapped, not copied.

Called by weights.loader. A reader refuses what it cannot prove harmless (ModelLoadError with one of the codes of
the table in docs/errors.md) and never runs code from a file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from penstock.errors import ModelLoadError
from penstock.registry import Registry


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Read-only views of every tensor, and a fingerprint of the files they come from."""

    tensors: Mapping[str, np.ndarray]  # float32, float16 or ml_dtypes.bfloat16, as stored
    source_hash: str


class Reader(Protocol):
    """Contract (tests/contracts/test_readers.py): every tensor is placed or the file is refused; no allocation
    beyond the header; truncated and hostile files give a typed error."""

    def matches(self, folder: Path) -> bool:
        """Whether `folder` holds a checkpoint of this kind, judged by file names alone."""
        ...

    def read(self, folder: Path) -> Checkpoint: ...


READERS: Registry[Reader] = Registry("checkpoint reader", "penstock.weights.readers")

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def read_checkpoint(folder: Path) -> Checkpoint:
    """The tensors of the one reader that knows the files in `folder`."""
    for name in READERS:
        if READERS[name].matches(folder):
            return READERS[name].read(folder)
    pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
    if pickled:
        raise ModelLoadError(
            "unsupported_format",
            f"{folder.name}: {pickled[0]} is a pickle, which can run code when it is read; convert it to safetensors.",
        )
    raise ModelLoadError(
        "missing_shard",
        f"{folder}: no weights found (looked for *.safetensors); check that the download is complete.",
    )
