"""One safetensors file, mapped read-only: 8 bytes of header length, a JSON header, raw data.

Called by the safetensors reader and by the cache of packed weights. The header is checked whole before a byte
of data is touched: lengths, types, shapes, spans that neither overlap nor leave holes.
"""

import hashlib
import json
import math
import mmap
import os
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from penstock.errors import ModelLoadError

MAX_HEADER_BYTES = 100_000_000  # as the format's own library
MAX_DIMS = 8
MAX_SHOWN_CHARS = 120
SAMPLE_BYTES = 4096

DTYPES: Mapping[str, Any] = {  # Any: ml_dtypes' scalar types have no common base in numpy's stubs
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
ARCHIVES = (b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b", b"7z\xbc\xaf")


@dataclass(frozen=True, slots=True)
class SafetensorsFile:
    """Views of every tensor, as stored; two fingerprints; and what the file was when it was mapped."""

    tensors: Mapping[str, np.ndarray]
    data_start: int  # the byte of the file at which tensor data begins
    content_hash: str  # of the header and two samples of each tensor
    source_hash: str  # the same with the time of the last change: another after any rewrite
    stamp: tuple[int, int]  # size and time of change, in ns


def read_file(path: Path) -> SafetensorsFile:
    """Map and check `path`. Copies nothing but the header, unless an odd length leaves data unaligned."""
    data, stamp = map_file(path)
    header_bytes = int.from_bytes(data[:8], "little")
    if not 2 <= header_bytes <= min(MAX_HEADER_BYTES, len(data) - 8):
        _refuse_foreign(path, bytes(data[:64]))
        raise ModelLoadError(
            "bad_header",
            f"{path.name}: header length {header_bytes:,} does not fit a file of {len(data):,} bytes; "
            f"download it again.",
        )
    start = 8 + header_bytes
    header = _header(path, bytes(data[8:start]))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ModelLoadError("bad_header", f"{path.name}: __metadata__ is not a map of strings.")
    tensors = _tensors(path, data, start, header)
    content_hash = _content_hash(data, start, tensors)
    source_hash = hashlib.blake2b(f"{content_hash} {stamp}".encode(), digest_size=16).hexdigest()
    return SafetensorsFile(tensors, start, content_hash, source_hash, stamp)


def parse_json(text: bytes) -> Any:  # Any: foreign JSON
    """Strict JSON: no key twice, no NaN. ValueError says what is wrong, in one line."""
    try:
        return json.loads(
            text.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_refuse_constant
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def shown(value: object) -> str:
    """Text from a stranger's file, fit for one line of an error."""
    text = value if isinstance(value, str) and value.isprintable() else ascii(value)
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}..."


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"key {shown(twice)} appears twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def map_file(path: Path) -> tuple[mmap.mmap, tuple[int, int]]:
    """The whole file, read-only. What is no regular file of this checkpoint is not opened."""
    try:
        if not _is_inside(path):
            raise ModelLoadError(
                "io_error", f"{path.name}: a link that leaves the folder; copy the file to where the link is."
            )
        if not stat.S_ISREG(path.stat().st_mode):
            raise ModelLoadError("io_error", f"{path.name}: not a regular file; copy the weights here.")
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_size < 8:
                raise ModelLoadError(
                    "bad_header", f"{path.name}: {status.st_size} bytes hold no header; download it again."
                )
            data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ModelLoadError("io_error", f"{path.name}: cannot be read ({why}).") from None
    return data, (status.st_size, status.st_mtime_ns)


def _is_inside(path: Path) -> bool:
    """Links must stay in the folder, or lead to the blobs of the hub's cache that the folder is part of."""
    if not path.is_symlink():
        return True
    target, folder = path.resolve(), path.parent.resolve()
    blobs = folder.parent.parent / "blobs"
    return target.is_relative_to(folder) or (folder.parent.name == "snapshots" and target.parent == blobs)


def _refuse_foreign(path: Path, begin: bytes) -> None:
    """Name the usual things that are saved as weights by mistake."""
    if begin.startswith(b"version https://git-lfs"):
        why = "is a Git LFS pointer, not weights; run `git lfs pull` in the folder"
    elif begin.lstrip()[:1] == b"<":
        why = "is a web page, not weights; download it again"
    elif begin.startswith(ARCHIVES):
        why = "is an archive, or a pickle in one; convert it to safetensors"
    elif begin.startswith(b"\x80") and begin[1] <= 5:
        why = "is a pickle, which can run code when it is read; convert it to safetensors"
    elif begin.startswith(b"GGUF"):
        why = "is a GGUF file; name it without the .safetensors"
    else:
        return
    raise ModelLoadError("unsupported_format", f"{path.name} {why}.")


def _header(path: Path, text: bytes) -> dict[str, Any]:  # Any: foreign JSON
    try:
        header = parse_json(text)
    except ValueError as error:
        raise ModelLoadError("bad_header", f"{path.name}: the header is not valid JSON ({error}).") from None
    if not isinstance(header, dict) or not text.startswith(b"{"):
        raise ModelLoadError("bad_header", f"{path.name}: the header is not a JSON object.")
    return header


def _tensors(path: Path, data: mmap.mmap, start: int, header: Mapping[str, Any]) -> dict[str, np.ndarray]:
    spans = {name: _check_info(path, name, info) for name, info in header.items()}
    available = len(data) - start
    at = 0
    for begin, end, name in sorted((begin, end, name) for name, (begin, end, _, _) in spans.items()):
        if end > available:
            raise ModelLoadError(
                "truncated",
                f"{path.name}: tensor {shown(name)} ends at byte {start + end:,} of a file of {len(data):,}; "
                f"download it again.",
            )
        if begin != at:
            word = "overlaps another" if begin < at else f"leaves a hole of {begin - at:,} bytes before it"
            raise ModelLoadError(
                "bad_tensor_info", f"{path.name}: tensor {shown(name)} {word}; the file is damaged."
            )
        at = end
    if at != available:
        raise ModelLoadError(
            "bad_tensor_info",
            f"{path.name}: {available - at:,} bytes follow the last tensor; the file is damaged.",
        )
    whole = np.frombuffer(data, np.uint8)[start:]
    if start % 8:
        whole = whole.copy()  # files of the format's first years do not pad their header
    return {
        name: whole[begin:end].view(dtype).reshape(shape)
        for name, (begin, end, shape, dtype) in spans.items()
    }


def _check_info(path: Path, name: str, info: Any) -> tuple[int, int, tuple[int, ...], Any]:
    """(first byte, last byte + 1, shape, dtype). Any: foreign JSON, and ml_dtypes' types."""

    def refuse(why: str) -> NoReturn:
        raise ModelLoadError(
            "bad_tensor_info", f"{path.name}: tensor {shown(name)}: {why}; the file is damaged."
        )

    def are_counts(value: object) -> bool:
        return isinstance(value, list) and all(type(count) is int and 0 <= count < 2**63 for count in value)

    if not isinstance(info, dict) or set(info) != {"dtype", "shape", "data_offsets"}:
        refuse("its entry is not exactly dtype, shape and data_offsets")
    dtype_name, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
    if not isinstance(dtype_name, str) or dtype_name not in DTYPES:
        raise ModelLoadError(
            "dtype_unsupported",
            f"{path.name}: tensor {shown(name)} is {shown(dtype_name)}; convert it to BF16, F16 or F32.",
        )
    if not are_counts(shape) or len(shape) > MAX_DIMS or math.prod(filter(None, shape)) >= 2**63:
        refuse(f"{shown(shape)} is no shape")
    if not are_counts(offsets) or len(offsets) != 2:
        refuse(f"data_offsets {shown(offsets)} are not two sizes")
    begin, end = offsets
    dtype = np.dtype(DTYPES[dtype_name])
    needed = math.prod(shape) * dtype.itemsize
    if end - begin != needed:
        refuse(f"shape {shown(shape)} of {dtype_name} needs {needed:,} bytes, its span has {end - begin:,}")
    if begin % dtype.itemsize:
        refuse(f"its data begin at {begin:,}, which is no multiple of {dtype.itemsize} bytes")
    return begin, end, tuple(shape), dtype


def _content_hash(data: mmap.mmap, start: int, tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.blake2b(data[:start], digest_size=16)
    for tensor in tensors.values():
        raw = tensor.reshape(-1).view(np.uint8)
        middle = len(raw) // 2
        digest.update(raw[:SAMPLE_BYTES].tobytes() + raw[middle : middle + SAMPLE_BYTES].tobytes())
    return digest.hexdigest()
