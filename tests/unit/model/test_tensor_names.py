"""Checkpoint names and canonical names are one to one, and skipping is by name."""

from dataclasses import replace

import pytest

from penstock.model.names import HF_EXPERTS, HF_LLAMA
from penstock.model.spec import AttentionSpec, LayerSpec, MLPSpec, ModelSpec, NormSpec

NORM = NormSpec(1e-5)
LAYER = LayerSpec(AttentionSpec(2, 2, 4, 1.0), MLPSpec(5), NORM)
SPEC = ModelSpec(8, 10, (LAYER, LAYER), NORM, 16, tie_embeddings=False)
CANONICAL = [*HF_LLAMA.top, *(f"layers.12.{name}" for name in HF_LLAMA.layer)]


@pytest.mark.parametrize("name", CANONICAL)
def test_names_come_back_as_they_went(name):
    assert HF_LLAMA.find_canonical(HF_LLAMA.checkpoint_name(name)) == name


def test_a_few_names_are_spelt_as_the_files_spell_them():
    assert HF_LLAMA.checkpoint_name("embed") == "model.embed_tokens.weight"
    assert HF_LLAMA.checkpoint_name("layers.0.attn.q_bias") == "model.layers.0.self_attn.q_proj.bias"
    assert HF_LLAMA.checkpoint_name("layers.3.mlp_norm") == "model.layers.3.post_attention_layernorm.weight"


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.01.input_layernorm.weight",
        "model.layers.x.input_layernorm.weight",
        "evil",
        "model.layers.0.",
    ],
)
def test_other_tensors_have_no_canonical_name(name):
    assert HF_LLAMA.find_canonical(name) is None
    assert not HF_LLAMA.is_inert(name, SPEC)


def test_old_frequencies_are_skipped_and_a_copied_head_only_where_embeddings_are_tied():
    assert HF_LLAMA.is_inert("model.layers.3.self_attn.rotary_emb.inv_freq", SPEC)
    assert HF_LLAMA.is_inert("lm_head.weight", replace(SPEC, tie_embeddings=True))
    assert not HF_LLAMA.is_inert("lm_head.weight", SPEC)


def test_layers_that_draft_are_skipped_and_no_others():
    drafting = replace(SPEC, num_draft_layers=2)
    inert = [i for i in range(6) if HF_LLAMA.is_inert(f"model.layers.{i}.self_attn.q_proj.weight", drafting)]

    assert inert == [2, 3]
    assert not HF_LLAMA.is_inert("model.layers.20.mlp.up_proj.weight", drafting)


@pytest.mark.parametrize("expert", [0, 7, 127])
def test_each_expert_has_names_of_its_own_that_come_back(expert):
    name = f"layers.12.mlp.experts.{expert}.gate"

    assert HF_EXPERTS.checkpoint_name(name) == f"model.layers.12.mlp.experts.{expert}.gate_proj.weight"
    assert HF_EXPERTS.find_canonical(HF_EXPERTS.checkpoint_name(name)) == name
    assert HF_EXPERTS.find_canonical("model.layers.12.mlp.experts.07.gate_proj.weight") is None
