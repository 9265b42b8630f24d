"""What llama.cpp calls tensors, as data: its names are alike for all architectures.

Called by engine.build for checkpoints that say which architecture of GGUF they are; a family's own names are
those of its original files. What the reader has to turn before is in weights/gguf_turned.py.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Final

from penstock.model.names import Names, fused, plain, with_layer

SECOND_NORM: Final = "blk.0.attn_norm_2.weight"
_EXPERTS: Final = {f"mlp.experts.*.{part}": f"ffn_{part}_exps.*.weight" for part in ("gate", "up", "down")}
PLAIN: Final = Names(
    top={
        "embed": "token_embd.weight",
        "positions": "position_embd.weight",
        **plain(embed_norm="token_embd_norm", final_norm="output_norm", lm_head="output"),
    },
    layer={
        **plain(attn_norm="attn_norm", mlp_norm="ffn_norm"),
        **plain(attn_out_norm="post_attention_norm", mlp_out_norm="post_ffw_norm"),
        **plain(attn__q="attn_q", attn__k="attn_k", attn__v="attn_v", attn__o="attn_output"),
        **{f"attn.{part}_norm": f"attn_{part}_norm.weight" for part in "qk"},
        **plain(mlp__gate="ffn_gate", mlp__up="ffn_up", mlp__down="ffn_down"),
        **plain(mlp__router="ffn_gate_inp", mlp__shared_router="ffn_gate_inp_shexp"),
        **plain(**{f"mlp__shared__{part}": f"ffn_{part}_shexp" for part in ("gate", "up", "down")}),
        **_EXPERTS,
    },
    layer_prefix="blk.{}.",
    inert=(r"rope_(freqs|factors_long|factors_short)\.weight",),  # read with the metadata
    flattened=(r"blk\.\d+\.attn_[qk]_norm\.weight",),  # a row for each head
    widened=(r"blk\.\d+\.ffn_gate_inp_shexp\.weight",),  # a matrix of one row
    stacked={stored: (parts,) for parts in _EXPERTS.values() for stored in [parts.replace(".*", "")]},
)
_QKV: Final = fused("attn_qkv", "attn.q", "attn.k", "attn.v")
FUSED: Final = with_layer(PLAIN, _QKV)
SHIFTED: Final = replace(PLAIN, shifted=(r".*norm\.weight",))  # stored as they multiply; families want w - 1
FALCON_TWO: Final = with_layer(FUSED, plain(attn_norm="attn_norm_2", mlp_norm="attn_norm"))
NAMES: Final[Mapping[str, Names]] = {
    "gemma": SHIFTED,
    "gemma2": SHIFTED,
    "gemma3": SHIFTED,
    "phi3": with_layer(FUSED, fused("ffn_up", "mlp.gate", "mlp.up")),
    "gpt2": FUSED,
    "gptneox": FUSED,
    "bloom": FUSED,
    "falcon": FUSED,
}


def gguf_names(architecture: str, tensors: Collection[str]) -> Names:
    """The names of a file of this architecture, which holds these tensors."""
    if architecture == "falcon" and SECOND_NORM in tensors:
        return FALCON_TWO
    return NAMES.get(architecture, PLAIN)
