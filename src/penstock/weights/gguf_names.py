"""What llama.cpp calls tensors, in the names of the checkpoints they were converted from.

Its converter also reorders the rows of q and k of `llama` models, so that rotary pairs lie side by side;
`turned_rows` says which row to read where, to have them as they were.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

TOP: Final[Mapping[str, str]] = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER: Final[Mapping[str, str]] = {
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    **{
        f"attn_{ours}.{kind}": f"self_attn.{theirs}_proj.{kind}"
        for ours, theirs in (("q", "q"), ("k", "k"), ("v", "v"), ("output", "o"))
        for kind in ("weight", "bias")
    },
    **{f"attn_{p}_norm.weight": f"self_attn.{p}_norm.weight" for p in "qk"},
    **{
        f"ffn_{p}.{kind}": f"mlp.{p}_proj.{kind}"
        for p in ("gate", "up", "down")
        for kind in ("weight", "bias")
    },
}
ROPE_FACTORS: Final = "rope_freqs.weight"  # read with the metadata: it belongs to the positions
TURNED: Final = ("llama",)  # architectures whose q and k rows were reordered
_BLOCK: Final = re.compile(r"blk\.(0|[1-9]\d*)\.(.+)")
_TURNED_NAME: Final = re.compile(r"blk\.\d+\.attn_(q|k)\.(weight|bias)")


def original_name(name: str) -> str:
    """The name in the original checkpoint; an unknown one as it is, for the loader to refuse."""
    block = _BLOCK.fullmatch(name)
    if block is not None and block[2] in LAYER:
        return f"model.layers.{block[1]}.{LAYER[block[2]]}"
    return TOP.get(name, name)


def turned_rows(
    name: str, num_rows: int, metadata: Mapping[str, Any]
) -> NDArray[np.intp] | None:  # Any: foreign
    """For each row of the original q or k, the row here; None: as stored."""
    match = _TURNED_NAME.fullmatch(name)
    if match is None or metadata.get("general.architecture") not in TURNED:
        return None
    heads = metadata.get("llama.attention.head_count")
    if match[1] == "k":
        heads = metadata.get("llama.attention.head_count_kv", heads)
    if not isinstance(heads, int) or heads < 1 or num_rows % (2 * heads):
        return None  # config.json is refused for what is wrong with it
    rows = np.arange(num_rows).reshape(heads, num_rows // heads // 2, 2)
    return rows.transpose(0, 2, 1).reshape(-1)
