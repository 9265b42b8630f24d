"""Packed weights on disk, so that the second start is a read: one safetensors file of uint8 panels.

Kept under `<cache>/packed/<key>.safetensors`; the key hashes the source files, the layout version and what
was packed, so that a change of any of them packs anew. A damaged or foreign file is packed over. After each
new file the cache is pruned: what was not read for MAX_AGE_S goes, then the least recently read, until all of
it is at most MAX_SHARE of the disk.
"""

import contextlib
import hashlib
import json
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from penstock.errors import ModelLoadError
from penstock.weights.arena import reserve
from penstock.weights.safetensors_file import read_file

LAYOUT_VERSION = 1  # raised whenever a byte of any format moves
ALIGNMENT = 64
SUFFIX = ".safetensors"
TEMPORARY = ".tmp"
MAX_AGE_S = 90 * 86400.0
MAX_SHARE = 0.1  # of the disk's size
ABANDONED_S = 86400.0  # what is still temporary after a day was left by a kill


def key_of(source_hash: str, contents: Mapping[str, tuple[str, tuple[int, ...], tuple[str, ...]]]) -> str:
    """`contents`: name -> (format, shape, sources)."""
    text = json.dumps([LAYOUT_VERSION, source_hash, sorted(contents.items())])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def path_of(cache: Path, key: str) -> Path:
    return cache / "packed" / f"{key}{SUFFIX}"


def load(
    path: Path, sizes: Mapping[str, int], mapped: Collection[str] = ()
) -> dict[str, NDArray[np.uint8]] | None:
    """The tensors, read into fresh huge-page memory; None when there is no such file.

    Those `mapped` stay in the file: pages come as they are touched, and may be given back at any time.
    """
    try:
        found = read_file(path)
    except ModelLoadError:
        return None
    if {name: tensor.nbytes for name, tensor in found.tensors.items()} != dict(sizes):
        return None
    memory = reserve(sum(size for name, size in sizes.items() if name not in mapped))
    out: dict[str, NDArray[np.uint8]] = {}
    at, place = 0, found.data_start
    try:
        with path.open("rb", buffering=0) as file:
            for name, tensor in found.tensors.items():  # in the order of the file, where no gaps are
                if name in mapped:
                    out[name] = tensor
                else:
                    out[name] = memory[at : at + tensor.nbytes]
                    at += tensor.nbytes
                    file.seek(place)
                    if not _read_whole(file.fileno(), out[name]):
                        return None
                place += tensor.nbytes
        os.utime(path)  # read just now: what pruning goes by
        return out
    except OSError:
        return None


def _read_whole(descriptor: int, memory: NDArray[np.uint8]) -> bool:
    at = 0
    while at < len(memory):
        count = os.readv(descriptor, [memory[at : at + (1 << 30)].data])
        if count == 0:
            return False
        at += count
    return True


def save(path: Path, tensors: Mapping[str, NDArray[np.uint8]]) -> str | None:
    """Write whole, then rename: a kill or a full disk leaves no half file. Returns why it failed, if so."""
    try:
        with _replacing(path) as file:
            file.write(_header({name: tensor.nbytes for name, tensor in tensors.items()}))
            for tensor in tensors.values():
                file.write(tensor.data)
    except OSError as error:
        return f"packed weights were not kept: {error.strerror} ({path.parent})."
    return None


def make(path: Path, sizes: Mapping[str, int], fill: Callable[[str, NDArray[np.uint8]], None]) -> None:
    """The same file, of tensors that never lie in memory all together: `fill` packs one after the other.

    ModelLoadError io_error where the disk has no room for it.
    """
    header, total = _header(sizes), sum(sizes.values())
    try:
        with _replacing(path) as file:
            file.write(header)
            file.flush()
            os.posix_fallocate(file.fileno(), len(header), total)  # a hole that cannot be filled is a signal
            memory = mmap.mmap(file.fileno(), len(header) + total)
            whole = np.frombuffer(memory, np.uint8)
            at = len(header)
            for name, size in sizes.items():
                fill(name, whole[at : at + size])
                memory.flush()
                memory.madvise(mmap.MADV_DONTNEED)  # on disk, and no more of this process
                at += size
    except OSError as error:
        raise ModelLoadError(
            "io_error",
            f"{total / 1e9:.2f} GB of packed weights must be kept on disk, since not all fit into memory: "
            f"{error.strerror} ({path.parent}). Free the space, or set XDG_CACHE_HOME to another disk.",
        ) from None


def _header(sizes: Mapping[str, int]) -> bytes:
    header: dict[str, object] = {}
    at = 0
    for name, size in sizes.items():
        assert size % ALIGNMENT == 0, f"{name}: panels are whole cache lines"
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that becomes `path` when it is written, whole and on disk; then the cache is pruned."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=TEMPORARY, delete=False) as file:
            temporary = Path(file.name)
            yield file
            file.flush()
            os.fsync(file.fileno())  # a rename may reach the disk before the data does
        temporary.replace(path)
        temporary = None
        prune(
            path.parent,
            keep=path,
            now_s=time.time(),
            max_bytes=int(MAX_SHARE * shutil.disk_usage(path).total),
        )
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


def prune(folder: Path, *, keep: Path, now_s: float, max_bytes: int) -> None:
    """Delete old files of the cache, then the least recently read, but never `keep`. Failures are let be."""
    found: list[tuple[float, int, Path]] = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another process prunes too
            status = path.stat()
            if path.suffix == TEMPORARY and now_s - status.st_mtime > ABANDONED_S:
                path.unlink()
            elif path.suffix == SUFFIX:
                found.append((status.st_mtime, status.st_size, path))
    left = sum(size for _, size, _ in found)
    for read_s, size, path in sorted(found):
        if path != keep and (left > max_bytes or now_s - read_s > MAX_AGE_S):
            with contextlib.suppress(OSError):
                path.unlink()
            left -= size
