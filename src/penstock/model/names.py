"""Checkpoint tensor names <-> canonical names, as data. The loader is handed the result; it knows no model.

Canonical names: embed, final_norm, lm_head and layers.<i>.{attn_norm, attn.q, attn.q_bias, ...}; weights of
a program name their sources by them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from penstock.model.spec import ModelSpec


@dataclass(frozen=True, eq=False)
class Names:
    """How one lineage of checkpoints spells its tensors, and how it stores them.

    A name that ends in `[part]` is a share of the rows of the tensor before it, whose parts lie in the order
    in which they stand here (`fused`). A name of a layer that holds `{}` is a tensor for each head, one with
    `*` a tensor for each expert, whose number stands there. Patterns match whole names; `model.unfold` makes
    of a checkpoint what is promised here.
    """

    top: Mapping[str, str]  # canonical -> checkpoint
    layer: Mapping[str, str]  # canonical, after "layers.<i>." -> checkpoint, after the layer's prefix
    layer_prefix: str  # holds one {}
    inert: tuple[str, ...] = ()  # patterns of tensors that may be skipped
    is_grouped: bool = False  # fused q, k, v: the queries of a KV head, its key, its value; then the next one
    forms: Mapping[str, str] = field(default_factory=dict)  # pattern -> how it is stored: FORMS of unfold
    turned: tuple[str, ...] = ()  # canonical names of fused parts that hold [K,N] of every head
    renamed: Mapping[str, str] = field(default_factory=dict)  # in the middle of names of some checkpoints
    optional_prefix: str = ""  # of all names but lm_head; some files of the lineage leave it out
    # Tables that are looked up together -> one whose first row all of them gain; the latter is used up
    gains: Mapping[str, str] = field(default_factory=dict)
    # Tensors of newer files, of all experts: [E, rows, K] or [E, rows] -> names with `*` that share the rows
    stacked: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    takes_turns: bool = False  # rows of a stacked tensor: one of each part, then the next of each

    @property
    def changes_tensors(self) -> bool:
        """Whether a checkpoint holds anything in another form than its weights are used in."""
        is_folded = any("[" in name or "{}" in name for name in self.layer.values())
        return is_folded or any((self.forms, self.renamed, self.optional_prefix, self.stacked, self.gains))

    def checkpoint_name(self, canonical: str) -> str:
        """What the checkpoint calls a canonical name."""
        match = _LAYER.match(canonical)
        if match is None:
            return self.top[canonical]
        part, expert = _numbered(match[2])
        return self.layer_prefix.format(match[1]) + self.layer[part].replace("*", expert)

    def find_canonical(self, name: str) -> str | None:
        """The canonical name of a checkpoint tensor, or None if it has none."""
        for canonical, spelled in self.top.items():
            if spelled == name:
                return canonical
        before, after = self.layer_prefix.split("{}")
        match = re.match(rf"{re.escape(before)}(0|[1-9]\d*){re.escape(after)}(.+)$", name)
        part, expert = _numbered(match[2]) if match else ("", "")
        for canonical, spelled in self.layer.items():
            if match and part == spelled:
                return f"layers.{match[1]}.{canonical.replace('*', expert)}"
        return None

    def is_inert(self, name: str, spec: ModelSpec) -> bool:
        """Whether a tensor may be there and be skipped. With tied embeddings a stored lm_head is a copy."""
        if spec.tie_embeddings and name == self.top.get("lm_head"):
            return True
        drafting = range(spec.num_layers, spec.num_layers + spec.num_draft_layers)
        if any(name.startswith(self.layer_prefix.format(layer)) for layer in drafting):
            return True
        return any(re.fullmatch(pattern, name) for pattern in self.inert)


_LAYER: Final = re.compile(r"layers\.(\d+)\.(.+)$")
_EXPERT: Final = re.compile(r"(?<=\.)(0|[1-9]\d*)(?=\.)")


def _numbered(part: str) -> tuple[str, str]:
    """A name with `*` in the place of its expert's number, and the number; as it is where there is none."""
    match = _EXPERT.search(part)
    return (_EXPERT.sub("*", part, count=1), match[1]) if match else (part, "")


def fused(module: str, *parts: str) -> dict[str, str]:
    """Names of weights and biases that a module holds in one tensor each: fused("qkv", "attn.q", ...)."""
    weights = {part: f"{module}.weight[{part}]" for part in parts}
    return weights | {f"{part}_bias": f"{module}.bias[{part}]" for part in parts}


def plain(**modules: str) -> dict[str, str]:
    """Names of weight and bias of modules; `__` stands for a dot: plain(attn__o="attn.dense")."""
    names = {canonical.replace("__", "."): module for canonical, module in modules.items()}
    weights = {canonical: f"{module}.weight" for canonical, module in names.items()}
    return weights | {f"{canonical}_bias": f"{module}.bias" for canonical, module in names.items()}


HF_LLAMA: Final = Names(
    top={
        "embed": "model.embed_tokens.weight",
        **plain(final_norm="model.norm"),
        "lm_head": "lm_head.weight",
    },
    layer={
        **plain(attn_norm="input_layernorm", mlp_norm="post_attention_layernorm"),
        **plain(**{f"attn__{p}": f"self_attn.{p}_proj" for p in "qkvo"}),
        **{f"attn.{p}_norm": f"self_attn.{p}_norm.weight" for p in "qk"},
        **plain(**{f"mlp__{p}": f"mlp.{p}_proj" for p in ("gate", "up", "down")}),
    },
    layer_prefix="model.layers.{}.",
    # Saved by old versions of transformers; recomputed from rope_theta.
    inert=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"model\.rotary_emb\.inv_freq"),
)


def with_layer(names: Names, *changes: Mapping[str, str]) -> Names:
    """`names` with other names in a layer."""
    layer = dict(names.layer)
    for change in changes:
        layer |= change
    return replace(names, layer=layer)


HF_SANDWICH: Final = with_layer(  # norms of the outputs, and perhaps of the inputs, too
    HF_LLAMA,
    plain(attn_norm="input_layernorm", attn_out_norm="post_attention_layernorm"),
    plain(mlp_norm="pre_feedforward_layernorm", mlp_out_norm="post_feedforward_layernorm"),
)


PARTS: Final = ("gate", "up", "down")  # of an expert


def experts(module: str, gate: str, up: str, down: str) -> dict[str, str]:
    """Names of an MLP for each expert: experts("mlp.experts", "gate_proj", "up_proj", "down_proj")."""
    return plain(
        **{f"mlp__experts__*__{p}": f"{module}.*.{n}" for p, n in zip(PARTS, (gate, up, down), strict=True)}
    )


def stacked_experts(module: str, names: Mapping[str, str], kind: str = "") -> dict[str, tuple[str, ...]]:
    """How transformers 5 stores what `experts` names, in two tensors of `module`; `kind`: "_bias" or none."""
    gate, up, down = (names[f"mlp.experts.*.{part}{kind}"] for part in ("gate", "up", "down"))
    return {f"{module}.gate_up_proj{kind}": (gate, up), f"{module}.down_proj{kind}": (down,)}


_EXPERTS: Final = experts("mlp.experts", "gate_proj", "up_proj", "down_proj")
HF_EXPERTS: Final = replace(  # beside the MLP of HF_LLAMA, which layers without experts have
    with_layer(
        HF_LLAMA,
        {"mlp.router": "mlp.gate.weight", "mlp.shared_router": "mlp.shared_expert_gate.weight"},
        plain(**{f"mlp__shared__{p}": f"mlp.shared_expert.{p}_proj" for p in ("gate", "up", "down")}),
        _EXPERTS,
    ),
    stacked=stacked_experts("mlp.experts", _EXPERTS),
)
_SHARED_EXPERTS: Final = plain(
    **{f"mlp__shared__{p}": f"mlp.shared_experts.{p}_proj" for p in ("gate", "up", "down")}
)
HF_GROUPED_EXPERTS: Final = with_layer(  # as DeepSeek-V3 spells them
    HF_EXPERTS, {"mlp.correction": "mlp.gate.e_score_correction_bias"}, _SHARED_EXPERTS
)
HF_LATENTS: Final = replace(  # latent attention, and those experts
    with_layer(
        HF_GROUPED_EXPERTS,
        fused("self_attn.q_proj", "attn.q_nope", "attn.q_rope"),
        fused("self_attn.kv_a_proj_with_mqa", "attn.latent", "attn.k_rope"),
        fused("self_attn.kv_b_proj", "attn.k_up", "attn.v_up"),
        plain(attn__q_low="self_attn.q_a_proj", attn__q_low_norm="self_attn.q_a_layernorm"),
        plain(attn__latent_norm="self_attn.kv_a_layernorm"),
    ),
    renamed={".self_attn.q_b_proj.": ".self_attn.q_proj."},  # where queries come out of a low rank
    turned=("attn.k_up",),
)
