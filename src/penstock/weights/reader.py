"""The seam of checkpoint readers: a folder's tensors by name, mapped, not copied.

Called by engine.build. A reader refuses what it cannot prove harmless, with one of the codes in
docs/errors.md, and never runs code from a file.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from penstock.errors import ModelLoadError
from penstock.registry import Registry
from penstock.weights.coding import CodedBlocks, CodedRows


@dataclass(frozen=True, slots=True)
class CodedTensor:
    """A matrix [N,K] that a checkpoint stores as codes, decoded a few rows at a time; or a stack [E,N,K]."""

    shape: tuple[int, ...]
    format: str  # a name of FORMATS that holds it without loss
    decode: Callable[[slice], CodedRows]  # of these rows; of a stack: those of all matrices under each other
    blocks: Callable[[slice], CodedBlocks] | None = None  # the same rows undecoded, where a packer takes them

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, place: tuple[int, slice]) -> "CodedTensor":
        """Rows of one matrix of a stack."""
        index, rows = place
        n = self.shape[1]
        return self.take(index * n + np.arange(n)[rows])

    def take(self, order: NDArray[np.intp]) -> "CodedTensor":
        """The matrix of these rows, in this order; of a stack, rows count through all its matrices."""

        def window(rows: slice) -> tuple[slice, NDArray[np.intp] | slice]:
            """What has to be read for them, and which of it they are."""
            chosen = order[rows]
            first, end = int(chosen.min()), int(chosen.max()) + 1
            step = int(chosen[1] - chosen[0]) if len(chosen) > 1 else 1
            if step > 0 and (np.diff(chosen) == step).all():
                return slice(first, end, step), slice(None)
            return slice(first, end), chosen - first

        def decode(rows: slice) -> CodedRows:
            read, these = window(rows)
            found = self.decode(read)
            return found if isinstance(these, slice) else found.take(these)

        def blocks_of(rows: slice) -> CodedBlocks:
            assert self.blocks is not None, "else this is not called"
            read, these = window(rows)
            found = self.blocks(read)
            return found if isinstance(these, slice) else replace(found, rows=found.rows[these])

        has_blocks = self.blocks is not None
        return CodedTensor(
            (len(order), self.shape[-1]), self.format, decode, blocks_of if has_blocks else None
        )

    def reshape(self, *shape: int) -> "CodedTensor":
        """The rows of a stack as a matrix, or those of a matrix as a stack; -1 is what is left."""
        num_rows = math.prod(self.shape[:-1])
        rest = math.prod(size for size in shape[:-1] if size != -1)
        sizes = tuple(num_rows // rest if size == -1 else size for size in shape[:-1])
        assert math.prod(sizes) == num_rows, "rows are neither made nor lost"
        assert shape[-1] == self.shape[-1], "and stay whole"
        return replace(self, shape=(*sizes, shape[-1]))


Tensor = np.ndarray | CodedTensor


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Read-only views of every tensor, and fingerprints of the files they come from.

    `content_hash` is a function of what the files hold (headers and samples of each tensor), the same
    everywhere. `source_hash` also changes with the time of their last change, so that no rewrite goes unseen.
    """

    tensors: Mapping[str, Tensor]  # as stored; the loader refuses dtypes it does not know
    source_hash: str
    content_hash: str = ""
    lineage: str = ""  # whose names the tensors have: an architecture of GGUF; "": those of the family
    stamps: Mapping[Path, tuple[int, int]] = field(
        default_factory=dict
    )  # size and time of change when mapped

    def check_unchanged(self) -> None:
        """ModelLoadError io_error if a file is no longer what it was when it was mapped."""
        for path, stamp in self.stamps.items():
            try:
                status = path.stat()
            except OSError:
                status = None
            if status is None or (status.st_size, status.st_mtime_ns) != stamp:
                raise ModelLoadError(
                    "io_error", f"{path.name}: changed while it was read; load again when it is complete."
                )


class Reader(Protocol):
    """Contract (tests/contracts/test_readers.py): every tensor is placed or the checkpoint is refused;
    nothing is allocated beyond headers; truncated and hostile files give a typed error.
    """

    def matches(self, folder: Path) -> bool:
        """Whether `folder` holds a checkpoint of this kind, judged by file names alone."""
        ...

    def read(self, folder: Path) -> Checkpoint:
        """All tensors. ModelLoadError with a code, in one line, for whatever is wrong with them."""
        ...


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
            f"{pickled[0]}: a pickle, which can run code when it is read; convert it to safetensors.",
        )
    raise ModelLoadError(
        "missing_shard",
        f"{folder.name}: no weights (looked for *.safetensors, *.gguf); the download may be incomplete.",
    )
