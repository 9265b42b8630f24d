"""Rows of q and k that llama.cpp's converter reorders, so that rotary pairs lie side by side: as they were.

Called by the GGUF reader. The names of tensors are the business of those who know models.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

TURNED: Final = ("llama", "granite")  # architectures whose q and k rows were reordered
_TURNED_NAME: Final = re.compile(r"blk\.\d+\.attn_(q|k)\.(weight|bias)")


def turned_rows(
    name: str, num_rows: int, metadata: Mapping[str, Any]
) -> NDArray[np.intp] | None:  # Any: foreign
    """For each row of the original q or k, the row here; None: as stored."""
    match = _TURNED_NAME.fullmatch(name)
    architecture = metadata.get("general.architecture")
    if match is None or architecture not in TURNED:
        return None
    heads = metadata.get(f"{architecture}.attention.head_count")
    if match[1] == "k":
        heads = metadata.get(f"{architecture}.attention.head_count_kv", heads)
    if not isinstance(heads, int) or heads < 1 or num_rows % (2 * heads):
        return None  # config.json is refused for what is wrong with it
    rows = np.arange(num_rows).reshape(heads, num_rows // heads // 2, 2)
    return rows.transpose(0, 2, 1).reshape(-1)
