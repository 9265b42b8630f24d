"""A checkpoint's fused, transposed, renamed tensors come out as one tensor for each weight."""

from dataclasses import replace

import numpy as np
import pytest

from penstock.errors import ModelLoadError
from penstock.model.names import HF_EXPERTS, HF_LATENTS, HF_LLAMA, Names, fused, plain, with_layer
from penstock.model.spec import (
    AttentionSpec,
    LatentAttentionSpec,
    LayerSpec,
    MLPSpec,
    ModelSpec,
    MoESpec,
    NormSpec,
    RopeSpec,
)
from penstock.model.unfold import unfold
from penstock.weights.coding import CodedRows, Coding
from penstock.weights.reader import CodedTensor

ATTENTION = AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=2, scale=1.0)
NORM = NormSpec(1e-5)
LAYER = LayerSpec(ATTENTION, MLPSpec(5), NORM)
SPEC = ModelSpec(8, 10, (LAYER, LAYER), NORM, 16, tie_embeddings=False)
QKV = fused("qkv", "attn.q", "attn.k", "attn.v")
NAMES = Names(top={"embed": "m.embed.weight", "lm_head": "lm_head.weight"}, layer=QKV, layer_prefix="m.h.{}.")


def rows(count: int, width: int = 3, first: int = 0) -> np.ndarray:
    return (np.arange(count * width) + first).astype(np.float32).reshape(count, width)


def test_stacked_parts_are_rows_one_after_the_other():
    whole, bias = rows(16), rows(16, 1).ravel()
    tensors = unfold({"m.h.0.qkv.weight": whole, "m.h.0.qkv.bias": bias}, NAMES, SPEC)

    assert np.array_equal(tensors[NAMES.checkpoint_name("layers.0.attn.q")], whole[:8])
    assert np.array_equal(tensors[NAMES.checkpoint_name("layers.0.attn.k")], whole[8:12])
    assert np.array_equal(tensors[NAMES.checkpoint_name("layers.0.attn.v_bias")], bias[12:])
    assert "m.h.0.qkv.weight" not in tensors
    assert len(tensors) == len(list(tensors)) == 6


def test_grouped_parts_are_gathered_from_every_kv_head():
    whole = rows(16)
    tensors = unfold({"m.h.1.qkv.weight": whole}, replace(NAMES, is_grouped=True), SPEC)

    assert np.array_equal(tensors["m.h.1.qkv.weight[attn.q]"], whole[[0, 1, 2, 3, 8, 9, 10, 11]])
    assert np.array_equal(tensors["m.h.1.qkv.weight[attn.k]"], whole[[4, 5, 12, 13]])
    assert np.array_equal(tensors["m.h.1.qkv.weight[attn.v]"], whole[[6, 7, 14, 15]])


def test_transposed_matrices_are_turned_before_they_are_split():
    whole = rows(16)
    names = replace(NAMES, forms={r".*\.weight": "transposed"})
    tensors = unfold({"m.h.0.qkv.weight": whole.T.copy()}, names, SPEC)

    assert np.array_equal(tensors["m.h.0.qkv.weight[attn.v]"], whole[12:])
    assert all(tensor.flags.c_contiguous for tensor in tensors.values())


def test_gate_and_up_are_halves():
    names = with_layer(HF_LLAMA, fused("mlp.gate_up_proj", "mlp.gate", "mlp.up"))
    whole = rows(10)
    tensors = unfold({"model.layers.0.mlp.gate_up_proj.weight": whole}, names, SPEC)

    assert np.array_equal(tensors[names.checkpoint_name("layers.0.mlp.up")], whole[5:])


def test_vectors_of_each_head_are_joined_and_flattened_ones_are_made_flat():
    names = replace(
        with_layer(HF_LLAMA, {"attn.q_norm": "q.{}.weight"}), forms={r".*\.k_norm\.weight": "flattened"}
    )
    each = {f"model.layers.0.q.{head}.weight": rows(2, 1, head).ravel() for head in range(4)}
    tensors = unfold({**each, "model.layers.0.self_attn.k_norm.weight": rows(2, 2)}, names, SPEC)

    assert tensors["model.layers.0.q.{}.weight"].tolist() == [0, 1, 1, 2, 2, 3, 3, 4]
    assert tensors["model.layers.0.self_attn.k_norm.weight"].tolist() == [0, 1, 2, 3]
    assert len(tensors) == 2


def test_a_head_without_its_vector_leaves_the_weight_out():
    names = with_layer(HF_LLAMA, {"attn.q_norm": "q.{}.weight"})
    tensors = unfold({"model.layers.0.q.0.weight": rows(2, 1).ravel()}, names, SPEC)

    assert names.checkpoint_name("layers.0.attn.q_norm") not in tensors


def test_a_prefix_that_a_file_leaves_out_is_put_there_but_for_the_head():
    names = replace(NAMES, optional_prefix="m.")
    short = unfold({"embed.weight": rows(2), "lm_head.weight": rows(2)}, names, SPEC)
    long = unfold({"m.embed.weight": rows(2), "lm_head.weight": rows(2)}, names, SPEC)

    assert list(short) == list(long) == ["m.embed.weight", "lm_head.weight"]


def test_names_of_some_checkpoints_are_changed_in_the_middle():
    names = replace(NAMES, layer=plain(attn_norm="input"), renamed={".ln_attn.": ".input."})
    tensors = unfold({"m.h.0.ln_attn.weight": rows(1)}, names, SPEC)

    assert list(tensors) == [names.checkpoint_name("layers.0.attn_norm")]


@pytest.mark.parametrize("shape", [(15, 3), (17, 3), (1, 3), ()])
def test_a_fused_tensor_of_another_size_is_refused_by_name(shape):
    with pytest.raises(ModelLoadError, match=r"m\.h\.0\.qkv\.weight") as caught:
        unfold({"m.h.0.qkv.weight": np.zeros(shape, np.float32)}, NAMES, SPEC)

    assert caught.value.code == "shape_mismatch"
    assert "\n" not in str(caught.value)


def test_a_lineage_that_stores_weights_as_they_are_used_is_handed_on_as_it_is():
    tensors = {"model.embed_tokens.weight": rows(2)}

    assert unfold(tensors, HF_LLAMA, SPEC) is tensors


def coded(*shape: int) -> CodedTensor:
    """Codes that say which row they are of."""
    codes = CodedRows(Coding(8, 32, "scale"), rows(16, 1).astype(np.int8), {"scale": rows(16, 1)})
    return CodedTensor(shape, "int8", codes.take)


def test_codes_are_handed_on_whole_or_by_rows_wherever_those_lie():
    names = replace(NAMES, optional_prefix="m.")
    whole = coded(16, 1)
    tensors = unfold({"m.h.0.qkv.weight": whole, "m.embed.weight": whole}, names, SPEC)

    assert tensors["m.embed.weight"] is whole
    assert tensors["m.h.0.qkv.weight[attn.k]"].decode(slice(None)).codes.ravel().tolist() == [8, 9, 10, 11]
    tensors = unfold({"m.h.0.qkv.weight": whole}, replace(names, is_grouped=True), SPEC)
    query = tensors["m.h.0.qkv.weight[attn.q]"]

    assert query.shape == (8, 1)
    assert query.decode(slice(None)).codes.ravel().tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    assert query.decode(slice(3, 6)).parts["scale"].ravel().tolist() == [3, 8, 9]
    names = replace(names, forms={r".*\.weight": "transposed"})
    with pytest.raises(ModelLoadError, match="stored as codes"):
        unfold({"m.embed.weight": whole}, names, SPEC)["m.embed.weight"]


def test_stored_forms_are_undone():
    stack = rows(6, 2).reshape(2, 3, 2)
    forms = {
        "m.a": "exponential",
        "m.b": "row",
        "m.f": "row",
        "m.c": "widened",
        "m.d": "joined",
        "m.e": "joined",
    }
    logs = np.float32([-2.5, 0, 1.25])
    stored = {
        "m.a": -np.exp(logs),
        "m.b": logs,
        "m.f": logs[None],
        "m.c": rows(4),
        "m.d": stack,
        "m.e": coded(2, 8, 1),
    }
    tensors = unfold(stored, replace(NAMES, forms=forms), SPEC)

    np.testing.assert_allclose(tensors["m.a"], logs, rtol=1e-6, atol=1e-7)
    assert tensors["m.a"].dtype == np.float32
    assert tensors["m.b"].shape == tensors["m.f"].shape == (1, 3)
    assert tensors["m.c"].shape == (4, 1, 3)
    assert np.array_equal(tensors["m.d"], stack.reshape(6, 2))
    assert tensors["m.e"].shape == (16, 1)


EXPERTS = replace(
    SPEC, layers=(LAYER, replace(LAYER, mlp=MoESpec(num_experts=4, top_k=2, intermediate_size=5)))
)
STACK = "model.layers.1.mlp.experts.gate_up_proj"


def test_stacked_experts_come_apart_without_a_copy():
    whole = np.arange(4 * 10 * 3, dtype=np.float32).reshape(4, 10, 3)
    tensors = unfold({STACK: whole}, HF_EXPERTS, EXPERTS)

    up = tensors[HF_EXPERTS.checkpoint_name("layers.1.mlp.experts.2.up")]

    assert np.array_equal(up, whole[2, 5:])
    assert np.shares_memory(up, whole)
    assert STACK not in tensors
    assert len(tensors) == 8


@pytest.mark.parametrize("shape", [(3, 10, 3), (4, 9, 3), (40, 3)])
def test_a_stack_of_other_experts_is_refused(shape):
    with pytest.raises(ModelLoadError, match="4 experts"):
        unfold({STACK: np.zeros(shape, np.float32)}, HF_EXPERTS, EXPERTS)


LATENT = LatentAttentionSpec(
    num_heads=2,
    latent_dim=5,
    nope_dim=3,
    rope_dim=2,
    value_dim=4,
    scale=1.0,
    norm=NORM,
    rope=RopeSpec(2, 1e4, 9),
)
LATENTS = replace(SPEC, layers=(replace(LAYER, mixer=LATENT),))
SELF = "model.layers.0.self_attn"


def test_latents_have_a_matrix_of_each_head_on_both_sides():
    """Stored: 3 rows of keys, then 4 of values, of the first head; the same of the second."""
    whole = rows(14, 5)
    tensors = unfold({f"{SELF}.kv_b_proj.weight": whole}, HF_LATENTS, LATENTS)

    k_up, v_up = (tensors[HF_LATENTS.checkpoint_name(f"layers.0.attn.{p}")] for p in ("k_up", "v_up"))

    assert np.array_equal(k_up, np.concatenate([whole[:3].T, whole[7:10].T]))
    assert np.array_equal(v_up, np.concatenate([whole[3:7], whole[10:]]))


@pytest.mark.parametrize("module", ["q_proj", "q_b_proj"])
def test_queries_of_latents_come_apart_head_by_head_and_what_is_cached_does_not(module):
    queries, low = rows(10), rows(7)
    tensors = unfold(
        {f"{SELF}.{module}.weight": queries, f"{SELF}.kv_a_proj_with_mqa.weight": low}, HF_LATENTS, LATENTS
    )
    parts = {
        p: tensors[HF_LATENTS.checkpoint_name(f"layers.0.attn.{p}")]
        for p in ("q_nope", "q_rope", "latent", "k_rope")
    }

    assert np.array_equal(parts["q_nope"], queries[[0, 1, 2, 5, 6, 7]])
    assert np.array_equal(parts["q_rope"], queries[[3, 4, 8, 9]])
    assert np.array_equal(parts["latent"], low[:5])
    assert np.array_equal(parts["k_rope"], low[5:])
