"""safetensors files, single or sharded, mapped read-only: 8 bytes of header length, a JSON header, raw data.

The header is checked whole before a byte of data is touched: lengths, types, shapes, spans that neither
overlap nor leave holes, and the index against the shards.
"""

import hashlib
import json
import math
import mmap
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from penstock.errors import ModelLoadError
from penstock.weights.reader import READERS, Checkpoint

MAX_HEADER_BYTES = 100_000_000  # as the format's own library
NUM_SAMPLES = 256
SAMPLE_BYTES = 4096

DTYPES: Mapping[str, Any] = {  # Any: ml_dtypes' scalar types have no common base in numpy's stubs
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "U8": np.uint8,
}
OTHER_SIZES = {"F64": 8, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U16": 2, "U32": 4, "U64": 8, "BOOL": 1,
               "F8_E4M3": 1, "F8_E5M2": 1}  # fmt: skip


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise ValueError(f"key {key!r} appears twice")
        seen[key] = value
    return seen


def _parse(text: bytes, path: Path, code: str) -> dict[str, Any]:
    try:
        parsed = json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(code, f"{path.name}: the header is not valid JSON ({error}).") from None
    if not isinstance(parsed, dict):
        raise ModelLoadError(code, f"{path.name}: the header is not a JSON object.")
    return parsed


def _map(path: Path) -> mmap.mmap:
    """The whole file, read-only; a pipe, a device or a text page posing as weights is refused first."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise ModelLoadError(
                "io_error", f"{path.name}: not a regular file; copy the weights into the folder."
            )
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                raise ModelLoadError(
                    "bad_header", f"{path.name}: {size} bytes cannot hold a safetensors header."
                )
            return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    except OSError as error:
        raise ModelLoadError("io_error", f"{path.name}: cannot be read ({error.strerror}).") from None


def read_file(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str], str]:
    """(tensors, metadata, fingerprint) of one file."""
    data = _map(path)
    start = bytes(data[:64])
    if start.startswith(b"version https://git-lfs"):
        raise ModelLoadError(
            "unsupported_format",
            f"{path.name} is a Git LFS pointer, not weights; run `git lfs pull` in the folder.",
        )
    if start.lstrip()[:1] == b"<":
        raise ModelLoadError(
            "unsupported_format", f"{path.name} is a web page, not weights; download it again."
        )
    header_bytes = int.from_bytes(start[:8], "little")
    if not 2 <= header_bytes <= min(MAX_HEADER_BYTES, len(data) - 8):
        raise ModelLoadError(
            "bad_header",
            f"{path.name}: header length {header_bytes} does not fit a file of {len(data)} bytes; download it again.",
        )
    header = _parse(bytes(data[8 : 8 + header_bytes]), path, "bad_header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ModelLoadError("bad_header", f"{path.name}: __metadata__ is not a map of strings.")
    tensors = _tensors(path, data, 8 + header_bytes, header)
    return tensors, metadata, _fingerprint(path, data, 8 + header_bytes)


def _tensors(path: Path, data: mmap.mmap, base: int, header: Mapping[str, Any]) -> dict[str, np.ndarray]:
    whole = np.frombuffer(data, np.uint8)
    available = len(data) - base
    tensors: dict[str, np.ndarray] = {}
    spans: list[tuple[int, int, str]] = []
    for name, info in header.items():
        start, end, shape, dtype = _check_info(path, name, info)
        if end > available:
            raise ModelLoadError(
                "truncated",
                f"{path.name}: tensor {name} ends at byte {base + end:,} of a file of {len(data):,}; download it again.",
            )
        spans.append((start, end, name))
        if dtype in DTYPES:
            raw = whole[base + start : base + end]
            if (base + start) % np.dtype(DTYPES[dtype]).itemsize:
                raw = raw.copy()  # an odd header length: rare, and still right
            tensors[name] = raw.view(DTYPES[dtype]).reshape(shape)
        else:
            tensors[name] = np.empty(
                0, np.bool_
            )  # only an inert tensor may have this type; the loader decides
    at = 0
    for start, end, name in sorted(spans):
        if start != at:
            word = "overlaps another" if start < at else f"leaves a hole of {start - at} bytes before it"
            raise ModelLoadError(
                "bad_tensor_info", f"{path.name}: tensor {name} {word}; the file is damaged."
            )
        at = end
    if at != available:
        raise ModelLoadError(
            "bad_tensor_info",
            f"{path.name}: {available - at} bytes follow the last tensor; the file is damaged.",
        )
    return tensors


def _check_info(
    path: Path, name: str, info: Any
) -> tuple[int, int, tuple[int, ...], str]:  # Any: foreign JSON
    def refuse(why: str, code: str = "bad_tensor_info") -> ModelLoadError:
        return ModelLoadError(code, f"{path.name}: tensor {name}: {why}.")

    def is_count(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63

    if not isinstance(info, dict) or set(info) != {"dtype", "shape", "data_offsets"}:
        raise refuse("its entry is not exactly dtype, shape and data_offsets")
    dtype, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
    if not isinstance(dtype, str) or (dtype not in DTYPES and dtype not in OTHER_SIZES):
        raise refuse(f"unknown dtype {dtype!r}", "dtype_unsupported")
    if not isinstance(shape, list) or not all(is_count(d) for d in shape) or len(shape) > 8:
        raise refuse(f"shape {shape!r} is not a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(is_count(o) for o in offsets):
        raise refuse(f"data_offsets {offsets!r} are not two sizes")
    start, end = offsets
    size = np.dtype(DTYPES[dtype]).itemsize if dtype in DTYPES else OTHER_SIZES[dtype]
    if end - start != math.prod(shape) * size:
        raise refuse(
            f"shape {shape} of {dtype} needs {math.prod(shape) * size} bytes, its span has {end - start}"
        )
    return start, end, tuple(shape), dtype


def _fingerprint(path: Path, data: mmap.mmap, base: int) -> str:
    """Header, size, time of change and 256 samples of 4 KiB: quick at every start, changed by any rewrite."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(data[:base])
    digest.update(f"{len(data)} {path.stat().st_mtime_ns}".encode())
    step = max(SAMPLE_BYTES, (len(data) - base) // NUM_SAMPLES)
    for at in range(base, len(data), step):
        digest.update(data[at : at + SAMPLE_BYTES])
    return digest.hexdigest()


def _index(folder: Path) -> dict[str, str] | None:
    """tensor -> shard, from model.safetensors.index.json; None when there is no index."""
    path = folder / "model.safetensors.index.json"
    if not path.exists():
        return None
    try:
        index = _parse(path.read_bytes(), path, "bad_index").get("weight_map")
    except OSError as error:
        raise ModelLoadError("io_error", f"{path.name}: cannot be read ({error.strerror}).") from None
    if not isinstance(index, dict) or not index or not all(isinstance(v, str) for v in index.values()):
        raise ModelLoadError("bad_index", f"{path.name}: no weight_map of tensor names to files.")
    for shard in set(index.values()):
        if Path(shard).name != shard:
            raise ModelLoadError(
                "bad_index", f"{path.name}: {shard!r} is not the name of a file in the folder."
            )
        if not (folder / shard).exists():
            raise ModelLoadError(
                "missing_shard", f"{shard}: named by the index, not in the folder; download it."
            )
    return index


@READERS.register("safetensors")
class SafetensorsReader:
    @staticmethod
    def matches(folder: Path) -> bool:
        return any(folder.glob("*.safetensors")) or (folder / "model.safetensors.index.json").exists()

    @staticmethod
    def read(folder: Path) -> Checkpoint:
        index = _index(folder)
        if index is None:
            paths = sorted(folder.glob("*.safetensors"))
            if len(paths) > 1 and (folder / "model.safetensors").exists():
                paths = [folder / "model.safetensors"]
        else:
            paths = [folder / shard for shard in sorted(set(index.values()))]
        tensors: dict[str, np.ndarray] = {}
        fingerprints: list[str] = []
        for path in paths:
            found, _, fingerprint = read_file(path)
            fingerprints.append(fingerprint)
            for name, tensor in found.items():
                if name in tensors:
                    raise ModelLoadError("bad_index", f"{path.name}: tensor {name} is in another shard too.")
                if index is not None and index.get(name) != path.name:
                    raise ModelLoadError(
                        "bad_index", f"{path.name}: the index places tensor {name} elsewhere."
                    )
                tensors[name] = tensor
        for name in index or ():
            if name not in tensors:
                raise ModelLoadError("missing_tensor", f"{(index or {})[name]}: holds no tensor {name}.")
        source = hashlib.blake2b("".join(fingerprints).encode(), digest_size=16).hexdigest()
        return Checkpoint(tensors, source)
