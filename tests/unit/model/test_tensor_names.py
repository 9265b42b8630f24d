"""Checkpoint names and canonical names are one to one, and skipping is by name."""

import pytest

from penstock.model.names import HF_LLAMA

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
    assert not HF_LLAMA.is_inert(name)


def test_old_frequencies_are_skipped_and_a_copied_head_only_where_embeddings_are_tied():
    assert HF_LLAMA.is_inert("model.layers.3.self_attn.rotary_emb.inv_freq")
    assert HF_LLAMA.is_inert("lm_head.weight", tie_embeddings=True)
    assert not HF_LLAMA.is_inert("lm_head.weight")
