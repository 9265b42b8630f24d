"""Checkpoint tensor names <-> canonical names, as data. The loader is handed the result; it knows no model.

Canonical names: embed, final_norm, lm_head and layers.<i>.{attn_norm, attn.q, attn.q_bias, ...}; weights of
a program name their sources by them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, eq=False)
class Names:
    """How one lineage of checkpoints spells its tensors. `inert`: patterns of tensors that may be skipped."""

    top: Mapping[str, str]  # canonical -> checkpoint
    layer: Mapping[str, str]  # canonical, after "layers.<i>." -> checkpoint, after the layer's prefix
    layer_prefix: str  # holds one {}
    inert: tuple[str, ...] = ()

    def checkpoint_name(self, canonical: str) -> str:
        """What the checkpoint calls a canonical name."""
        match = _LAYER.match(canonical)
        if match is None:
            return self.top[canonical]
        return self.layer_prefix.format(match[1]) + self.layer[match[2]]

    def find_canonical(self, name: str) -> str | None:
        """The canonical name of a checkpoint tensor, or None if it has none."""
        for canonical, spelled in self.top.items():
            if spelled == name:
                return canonical
        before, after = self.layer_prefix.split("{}")
        match = re.match(rf"{re.escape(before)}(0|[1-9]\d*){re.escape(after)}(.+)$", name)
        for canonical, spelled in self.layer.items():
            if match and match[2] == spelled:
                return f"layers.{match[1]}.{canonical}"
        return None

    def is_inert(self, name: str, *, tie_embeddings: bool = False) -> bool:
        """Whether a tensor may be there and be skipped. With tied embeddings a stored lm_head is a copy."""
        if tie_embeddings and name == self.top.get("lm_head"):
            return True
        return any(re.fullmatch(pattern, name) for pattern in self.inert)


_LAYER: Final = re.compile(r"layers\.(\d+)\.(.+)$")

HF_LLAMA: Final = Names(
    top={
        "embed": "model.embed_tokens.weight",
        "final_norm": "model.norm.weight",
        "lm_head": "lm_head.weight",
    },
    layer={
        "attn_norm": "input_layernorm.weight",
        "mlp_norm": "post_attention_layernorm.weight",
        **{f"attn.{p}": f"self_attn.{p}_proj.weight" for p in "qkvo"},
        **{f"attn.{p}_bias": f"self_attn.{p}_proj.bias" for p in "qkvo"},
        **{f"attn.{p}_norm": f"self_attn.{p}_norm.weight" for p in "qk"},
        **{f"mlp.{p}": f"mlp.{p}_proj.weight" for p in ("gate", "up", "down")},
        **{f"mlp.{p}_bias": f"mlp.{p}_proj.bias" for p in ("gate", "up", "down")},
    },
    layer_prefix="model.layers.{}.",
    # Saved by old versions of transformers; recomputed from rope_theta.
    inert=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"model\.rotary_emb\.inv_freq"),
)
