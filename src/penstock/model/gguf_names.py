"""What llama.cpp calls tensors, as data: its names are alike for all architectures.

Called by engine.build for checkpoints that say which architecture of GGUF they are; a family's own names are
those of its original files. What the reader has to turn before is in weights/gguf_turned.py.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Final

from penstock.model.names import Names, fused, plain, with_layer

SECOND_NORM: Final = "blk.0.attn_norm_2.weight"
WHOLE_KV: Final = "blk.0.attn_kv_b.weight"
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
    forms={
        r"blk\.\d+\.attn_[qk]_norm\.weight": "flattened",  # a row for each head
        r"blk\.\d+\.ffn_gate_inp_shexp\.weight": "row",  # a matrix of one row
    },
    stacked={stored: (parts,) for parts in _EXPERTS.values() for stored in [parts.replace(".*", "")]},
)
_QKV: Final = fused("attn_qkv", "attn.q", "attn.k", "attn.v")
FUSED: Final = with_layer(PLAIN, _QKV)
# Norms are stored as they multiply; families want w - 1.
SHIFTED: Final = replace(PLAIN, forms={**PLAIN.forms, r".*norm\.weight": "shifted"})
FALCON_TWO: Final = with_layer(FUSED, plain(attn_norm="attn_norm_2", mlp_norm="attn_norm"))
_LATENTS: Final = replace(
    with_layer(
        PLAIN,
        fused("attn_q", "attn.q_nope", "attn.q_rope"),
        fused("attn_kv_a_mqa", "attn.latent", "attn.k_rope"),
        plain(attn__q_low="attn_q_a", attn__q_low_norm="attn_q_a_norm", attn__latent_norm="attn_kv_a_norm"),
        {"mlp.correction": "exp_probs_b.bias"},
    ),
    renamed={".attn_q_b.": ".attn_q."},  # where queries come out of a low rank
)
LATENTS: Final = replace(  # the keys' matrices turned already, head by head
    with_layer(_LATENTS, plain(attn__k_up="attn_k_b", attn__v_up="attn_v_b")),
    forms={**PLAIN.forms, r"blk\.\d+\.attn_[kv]_b\.weight": "joined"},
)
LATENTS_WHOLE: Final = replace(  # as the first files have them, and the original
    with_layer(_LATENTS, fused("attn_kv_b", "attn.k_up", "attn.v_up")), turned=("attn.k_up",)
)
STATES: Final = replace(
    with_layer(
        PLAIN,
        plain(
            mixer__in="ssm_in", mixer__out="ssm_out", mixer__conv="ssm_conv1d", mixer__gate_norm="ssm_norm"
        ),
        {"mixer.dt_bias": "ssm_dt.bias", "mixer.a_log": "ssm_a", "mixer.skip": "ssm_d"},
    ),
    forms={
        r"blk\.\d+\.ssm_(a|d|norm\.weight)": "flattened",
        r"blk\.\d+\.ssm_a": "exponential",
        r"blk\.\d+\.ssm_conv1d\.weight": "widened",
    },
)
ENCODER: Final = replace(
    with_layer(PLAIN, plain(attn_norm="attn_output_norm", mlp_norm="layer_output_norm")),
    gains={"position_embd.weight": "token_types.weight"},
)
NAMES: Final[Mapping[str, Names]] = {
    "gemma": SHIFTED,
    "gemma2": SHIFTED,
    "gemma3": SHIFTED,
    "phi3": with_layer(FUSED, fused("ffn_up", "mlp.gate", "mlp.up")),
    "gpt2": FUSED,
    "gptneox": FUSED,
    "bloom": FUSED,
    "falcon": FUSED,
    "deepseek2": LATENTS,
    "mamba2": STATES,
    "bert": ENCODER,
}


def gguf_names(architecture: str, tensors: Collection[str]) -> Names:
    """The names of a file of this architecture, which holds these tensors."""
    if architecture == "falcon" and SECOND_NORM in tensors:
        return FALCON_TWO
    if architecture == "deepseek2" and any(name.startswith(WHOLE_KV) for name in tensors):
        return LATENTS_WHOLE
    return NAMES.get(architecture, PLAIN)
