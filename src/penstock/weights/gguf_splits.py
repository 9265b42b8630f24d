"""The files of one GGUF checkpoint: itself, or its siblings `name-00001-of-00003.gguf`."""

import re
from pathlib import Path
from typing import Final

from penstock.errors import ModelLoadError
from penstock.weights.gguf_file import GGUFFile, read_gguf
from penstock.weights.safetensors_file import shown

SPLIT: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
MAX_SPLITS: Final = 1024


def read_splits(path: Path) -> dict[Path, GGUFFile]:
    """Every file of the checkpoint that `path` belongs to, in order. Each tensor is in one of them."""
    match = SPLIT.fullmatch(path.name)
    if match is None:
        paths = [path]
    else:
        count = int(match["count"])
        if not 1 <= int(match["number"]) <= count <= MAX_SPLITS:
            raise ModelLoadError("bad_index", f"{path.name}: no split of 1 to {MAX_SPLITS}.")
        paths = [
            path.with_name(f"{match['stem']}-{number:05}-of-{count:05}.gguf")
            for number in range(1, count + 1)
        ]
    for one in paths:
        if not one.exists():
            raise ModelLoadError("missing_shard", f"{one.name}: not beside its siblings; download it.")
    files = {one: read_gguf(one) for one in paths}
    tensors: set[str] = set()
    for index, (one, file) in enumerate(files.items()):
        said = file.metadata.get("split.count", 1), file.metadata.get("split.no", 0)
        if said not in ((len(paths), index), (0, 0)):
            raise ModelLoadError(
                "bad_index", f"{one.name}: says it is split {said[1]} of {said[0]}, its name another."
            )
        for name in file.tensors:
            if name in tensors:
                raise ModelLoadError(
                    "bad_index", f"{one.name}: tensor {shown(name)} is in another split too."
                )
            tensors.add(name)
        total = file.metadata.get("split.tensors.count")
    if total is not None and total != len(tensors):
        raise ModelLoadError(
            "bad_index", f"{path.name}: {len(tensors)} tensors in all splits, {total} were promised."
        )
    return files
