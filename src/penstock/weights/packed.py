"""Packed weights on disk, so that the second start is a read: one safetensors file of uint8 panels.

Kept under `<cache>/packed/<key>.safetensors`; the key hashes the source files, the layout version and what
was packed, so that a change of any of them packs anew. A damaged or foreign file is packed over. After each
new file the cache is pruned: what was not read for MAX_AGE_S goes, then the least recently read, until all of
it is at most MAX_SHARE of the disk.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

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


def load(path: Path, sizes: Mapping[str, int]) -> dict[str, NDArray[np.uint8]] | None:
    """The tensors, read into fresh huge-page memory; None when there is no such file."""
    try:
        found = read_file(path)
    except ModelLoadError:
        return None
    if {name: tensor.nbytes for name, tensor in found.tensors.items()} != dict(sizes):
        return None
    memory = reserve(sum(sizes.values()))
    out: dict[str, NDArray[np.uint8]] = {}
    at = 0
    for name, tensor in found.tensors.items():  # in the order of the file, which `save` writes without gaps
        out[name] = memory[at : at + tensor.nbytes]
        at += tensor.nbytes
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(found.data_start)
            if not _read_whole(file.fileno(), memory):
                return None
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
    header: dict[str, object] = {}
    at = 0
    for name, tensor in tensors.items():
        assert tensor.nbytes % ALIGNMENT == 0, f"{name}: panels are whole cache lines"
        header[name] = {"dtype": "U8", "shape": [tensor.nbytes], "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=TEMPORARY, delete=False) as file:
            temporary = Path(file.name)
            file.write(len(text).to_bytes(8, "little") + text)
            for tensor in tensors.values():
                file.write(tensor.data)
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
    except OSError as error:
        return f"packed weights were not kept: {error.strerror} ({path.parent})."
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()
    return None


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
