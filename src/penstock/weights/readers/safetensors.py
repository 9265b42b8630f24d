"""A folder of safetensors files: one, or shards with their index, which must agree to the tensor."""

import hashlib
import re
from pathlib import Path

import numpy as np

from penstock.errors import ModelLoadError
from penstock.weights.reader import READERS, Checkpoint
from penstock.weights.safetensors_file import parse_json, read_file, shown

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
MAX_NAME_CHARS = 255


def _index(folder: Path) -> dict[str, str]:
    """tensor -> shard."""
    path = folder / INDEX
    if not path.is_file():
        raise ModelLoadError("io_error", f"{INDEX}: not a regular file; copy it into the folder.")
    try:
        content = parse_json(path.read_bytes())
    except OSError as error:
        raise ModelLoadError("io_error", f"{INDEX}: cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise ModelLoadError("bad_index", f"{INDEX}: not valid JSON ({error}); download it again.") from None
    index = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(index, dict) or not index or not all(isinstance(v, str) for v in index.values()):
        raise ModelLoadError("bad_index", f"{INDEX}: no weight_map of tensor names to files.")
    for shard in sorted(set(index.values())):
        is_name = shard.endswith(".safetensors") and shard.isprintable() and len(shard) <= MAX_NAME_CHARS
        if not is_name or Path(shard).name != shard:
            raise ModelLoadError(
                "bad_index", f"{INDEX}: {shown(shard)} is not the name of a weights file here."
            )
        if not (folder / shard).exists():
            raise ModelLoadError(
                "missing_shard", f"{shard}: named by the index, not in the folder; download it."
            )
    return index


def _check_shards(paths: list[Path]) -> None:
    """Without an index, the names of shards tell how many there are."""
    names = {path.name for path in paths}
    for found in filter(None, map(SHARD.fullmatch, sorted(names))):
        for number in range(1, int(found["count"]) + 1):
            shard = f"{found['stem']}-{number:05}-of-{found['count']}.safetensors"
            if shard not in names:
                raise ModelLoadError(
                    "missing_shard", f"{shard}: not in the folder with its siblings; download it."
                )


@READERS.register("safetensors")
class SafetensorsReader:
    """`model.safetensors`, else the shards of the index, else every *.safetensors in the folder."""

    @staticmethod
    def matches(folder: Path) -> bool:
        return any(folder.glob("*.safetensors")) or (folder / INDEX).exists()

    @staticmethod
    def read(folder: Path) -> Checkpoint:
        index: dict[str, str] | None = None
        if (folder / SINGLE).exists() or (folder / SINGLE).is_symlink():
            paths = [folder / SINGLE]
        elif (folder / INDEX).exists():
            index = _index(folder)
            paths = [folder / shard for shard in sorted(set(index.values()))]
        else:
            paths = sorted(folder.glob("*.safetensors"))
            _check_shards(paths)
        tensors: dict[str, np.ndarray] = {}
        files = {path: read_file(path) for path in paths}
        for path, file in files.items():
            for name, tensor in file.tensors.items():
                if name in tensors:
                    raise ModelLoadError(
                        "bad_index", f"{path.name}: tensor {shown(name)} is in another file too."
                    )
                if index is not None and index.get(name) != path.name:
                    raise ModelLoadError(
                        "bad_index", f"{path.name}: the index does not place tensor {shown(name)} here."
                    )
                tensors[name] = tensor
        for name, shard in (index or {}).items():
            if name not in tensors:
                raise ModelLoadError("bad_index", f"{shard}: holds no tensor {shown(name)}, says the index.")
        return Checkpoint(
            tensors,
            source_hash=_joined([file.source_hash for file in files.values()]),
            content_hash=_joined([file.content_hash for file in files.values()]),
            stamps={path: file.stamp for path, file in files.items()},
        )


def _joined(hashes: list[str]) -> str:
    return hashlib.blake2b("".join(hashes).encode(), digest_size=16).hexdigest()
