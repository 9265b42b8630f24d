"""Programs: roundings where the contract wants them, fused programs equal in bits, prices that add up."""

from dataclasses import replace

import numpy as np
import pytest
from tests.parity.steps import Sequences, argmax_sampler

from penstock.backends.reference.executor import ReferenceExecutor
from penstock.model.build import build
from penstock.model.passes.fuse import fuse
from penstock.model.program import Program
from penstock.model.spec import (
    AttentionSpec,
    LatentAttentionSpec,
    LayerSpec,
    MLPSpec,
    ModelSpec,
    NormSpec,
    PositionTableSpec,
    RopeSpec,
)

NORM = NormSpec(eps=1e-5)
ROPE = RopeSpec(rotary_dim=16, theta=10000.0, max_position=256)
ATTENTION = AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=16, scale=0.25, rope=ROPE)
PLAIN = LayerSpec(ATTENTION, MLPSpec(48), NORM)
BIASED = LayerSpec(
    replace(ATTENTION, qkv_bias=True, o_bias=True), MLPSpec(48, act="gelu_tanh", bias=True), NORM
)
NORMED = LayerSpec(replace(ATTENTION, qk_norm=NormSpec(1e-6, 1.0), window=5), MLPSpec(48), NORM)
UNPLACED = LayerSpec(replace(ATTENTION, rope=None, softcap=3.0), MLPSpec(48, act="gelu"), NormSpec(1e-5, 1.0))
SLOPED = LayerSpec(replace(ATTENTION, rope=None, sinks=True, slopes=(0.5, 0.25, 0.1, 0.0)), MLPSpec(48), NORM)
LAYER_NORM = NormSpec(eps=1e-5, kind="layer", has_bias=True)
BARE_NORM = NormSpec(eps=1e-5, kind="layer", has_weight=False)
UNGATED = MLPSpec(48, act="relu", bias=True, is_gated=False)
SANDWICH = replace(PLAIN, norm=NormSpec(1e-6, 1.0), norm_outputs=True)
POSTED = replace(PLAIN, norm_inputs=False, norm_outputs=True)
TWINS = LayerSpec(replace(ATTENTION, qkv_bias=True, o_bias=True), UNGATED, LAYER_NORM, is_parallel=True)
SHARED = replace(TWINS, norm=BARE_NORM, shares_norm=True, residual_scale=0.3)
WHOLE_ROW = replace(PLAIN, mixer=replace(ATTENTION, qk_norm=NORM, qk_norm_over="row"))
EACH_HEAD = replace(
    PLAIN,
    mixer=replace(
        ATTENTION,
        rope=replace(ROPE, rotary_dim=8, interleaved=True),
        qk_norm=NormSpec(1e-5, kind="layer"),
        qk_norm_over="each_head",
    ),
)
LATENT = LatentAttentionSpec(
    num_heads=4, latent_dim=24, nope_dim=12, rope_dim=8, value_dim=10, scale=0.25, norm=NormSpec(1e-6),
    rope=replace(ROPE, rotary_dim=8, interleaved=True), query_rank=20, bias=True,
)  # fmt: skip
FORMATS = ["float32", "float16", "bfloat16", "int8", "int4_g32"]
FUSED_OPS = {
    "embed": 1,
    "norm_operand": 2,
    "rows_norm_operand": 1,
    "split_rope_write": 1,
    "attention": 1,
    "operand": 1,
    "linear": 3,
    "linear_add": 2,
    "gated_operand": 1,
}


def spec_of(*layers: LayerSpec, tie_embeddings: bool = False) -> ModelSpec:
    return ModelSpec(40, 70, layers, NORM, 256, tie_embeddings)


def program_of(spec: ModelSpec, format: str = "bfloat16") -> Program:
    kv_dtype = "float32" if format in {"float32", "float16"} else "bfloat16"
    return build(spec, weight_format=format, head_format=format, kv_dtype=kv_dtype, max_context=64)


def random_weights(program: Program) -> dict[str, np.ndarray]:
    """One array per source tensor, stacked as each program wants them."""
    rng = np.random.default_rng(0)
    plain = build(
        program.spec, weight_format="float32", head_format="float32", kv_dtype="float32", max_context=8
    )
    sources = {
        use.sources[0]: rng.standard_normal(use.shape, np.float32) * np.float32(0.3)
        for use in plain.weights.values()
    }
    return {u.name: np.concatenate([sources[s] for s in u.sources]) for u in program.weights.values()}


def run(program: Program) -> tuple[bytes, bytes]:
    """Logits of a few ragged steps, and what is left in the cache."""
    executor = ReferenceExecutor(
        program,
        random_weights(program),
        num_kv_blocks=[9] * len(program.kv_groups),
        block_size=4,
        sampler=argmax_sampler,
    )
    sequences = Sequences(executor, ((1, 5, 7, 0), (2, 8, 3, 4)), num_groups=len(program.kv_groups))
    steps = [{0: [3, 1, 4]}, {0: [1], 1: [5, 9, 2, 6, 5]}, {1: [3], 0: [5, 8]}]
    logits = b"".join(out.tobytes() for step in steps for out in sequences.run(step).values())
    caches = [executor._state[f"kv.{layer.layer}"] for layer in program.kv_layers]
    return logits, b"".join(cache.keys.tobytes() + cache.values.tobytes() for cache in caches)


SPECS = {
    "plain": spec_of(PLAIN),
    "tied": spec_of(PLAIN, tie_embeddings=True),
    "biased": spec_of(BIASED, PLAIN),
    "qk-norm, window": spec_of(PLAIN, NORMED),
    "no rope, softcap": spec_of(UNPLACED),
    "sinks, alibi": spec_of(SLOPED),
}
OTHERS = {  # what other families are made of
    "sandwich, caps": replace(spec_of(SANDWICH, POSTED), embed_scale=6.5, logit_softcap=4.0),
    "parallel, positions": replace(
        spec_of(TWINS, SHARED), positions=PositionTableSpec(66, 2), final_norm=LAYER_NORM
    ),
    "latents": spec_of(
        replace(PLAIN, mixer=LATENT), replace(PLAIN, mixer=replace(LATENT, query_rank=None, bias=False))
    ),
    "qk-norms": replace(spec_of(WHOLE_ROW, EACH_HEAD), embed_norm=LAYER_NORM, logit_scale=0.25),
}
ALL = SPECS | OTHERS


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ALL)
def test_fusing_changes_no_bit(name, format):
    program = program_of(ALL[name], format)

    assert run(fuse(program)) == run(program)


@pytest.mark.parametrize("name", SPECS)
def test_every_layer_is_fused_completely(name):
    counts: dict[str, int] = {}
    for call in fuse(program_of(SPECS[name])).calls:
        counts[call.op.name] = counts.get(call.op.name, 0) + 1
    num_layers = SPECS[name].num_layers
    once = {"embed", "rows_norm_operand"}
    expected = {op: n if op in once else n * num_layers for op, n in FUSED_OPS.items()}
    expected["linear"] = 2 * num_layers + 1  # qkv, gate_up; lm_head

    assert counts == expected


def count_ops(program: Program) -> dict[str, int]:
    counts: dict[str, int] = {}
    for call in program.calls:
        counts[call.op.name] = counts.get(call.op.name, 0) + 1
    return counts


def test_other_layers_are_fused_as_far_as_they_can_be():
    sandwich, parallel, latents, qk = (count_ops(fuse(program_of(spec))) for spec in OTHERS.values())
    every_layer = {"split_rope_write": 2, "attention": 2, "rows_norm_operand": 1, "embed": 1}

    assert sandwich == every_layer | {
        "norm_operand": 2, "norm_add": 4, "operand": 4, "linear": 9, "gated_operand": 2, "softcap": 1
    }  # fmt: skip
    assert parallel == every_layer | {
        "norm_operand": 3, "operand": 2, "linear": 5, "linear_add": 4, "activated_operand": 2
    }  # fmt: skip
    assert latents == {
        "latent_rope_write": 2, "attention": 2, "heads_operand": 4, "heads_linear": 4, "embed": 1,
        "rows_norm_operand": 1, "norm_operand": 5, "operand": 2, "linear": 10, "linear_add": 4,
        "gated_operand": 2,
    }  # fmt: skip
    assert qk == every_layer | {
        "norm": 1, "norm_operand": 4, "operand": 2, "linear": 5, "linear_add": 4, "gated_operand": 2
    }  # fmt: skip


def test_stacked_weights_name_their_parts_in_order():
    weights = fuse(program_of(SPECS["biased"])).weights

    assert weights["layers.0.attn.qkv"].sources == tuple(f"layers.0.attn.{p}" for p in "qkv")
    assert weights["layers.0.attn.qkv"].shape == (64 + 2 * 32, 40)
    assert weights["layers.0.attn.qkv_bias"].sources == tuple(f"layers.0.attn.{p}_bias" for p in "qkv")
    assert weights["layers.0.mlp.gate_up"].sources == ("layers.0.mlp.gate", "layers.0.mlp.up")
    assert weights["layers.0.mlp.gate_up"].format == "bfloat16"
    assert weights["layers.0.mlp.gate_up_bias"].kind == "vector"
    assert "layers.0.attn.q" not in weights


def test_a_value_with_two_readers_is_not_swallowed():
    program = program_of(SPECS["plain"])
    calls = list(program.calls)
    index = next(i for i, call in enumerate(calls) if call.output == "layers.0.mlp_norm")
    tapped = replace(calls[index], inputs=("layers.0.mlp_norm", calls[index].inputs[1]), output="second")
    calls.insert(index + 1, tapped)
    fused = fuse(replace(program, calls=tuple(calls)))

    assert any(call.output == "layers.0.mlp_norm" and call.op.name == "norm" for call in fused.calls)


@pytest.mark.parametrize(
    ("format", "operand", "attention"),
    [
        ("float32", "float32", "float32"),
        ("float16", "float32", "float32"),
        ("bfloat16", "bfloat16", "bfloat16"),
        ("int8", "int8", "bfloat16"),
        ("int4_g64", "int8", "bfloat16"),
    ],
)
def test_the_contract_follows_the_weights(format, operand, attention):
    program = program_of(SPECS["plain"], format)
    rounded_to = {call.op.name: call.attrs["to"] for call in program.calls if "to" in call.attrs}

    assert rounded_to == {"operand": operand, "round": attention, "attention": attention}


def test_every_product_reads_an_operand_and_every_cached_value_is_rounded():
    program = program_of(SPECS["qk-norm, window"])
    maker = {call.output: call.op.name for call in program.calls}

    for call in program.calls:
        if call.op.name == "linear":
            assert maker[call.inputs[0]] == "operand"
        if call.op.name == "kv_write":
            assert {maker[call.inputs[0]], maker[call.inputs[1]]} == {"round"}
        if call.op.name == "attention":
            assert maker[call.inputs[0]] == "round"


def test_every_value_is_made_before_it_is_read():
    for program in (program_of(SPECS["biased"]), fuse(program_of(SPECS["biased"]))):
        known = {f"weights.{name}" for name in program.weights} | set(program.constants)
        known |= {f"kv.{layer.layer}" for layer in program.kv_layers}
        for call in program.calls:
            for name in call.inputs:
                assert name is None or name in known or name.startswith("step.")
            known.add(call.output)

        assert program.calls[-1].output == "logits"


def test_tied_embeddings_give_two_uses_of_one_tensor():
    weights = program_of(SPECS["tied"]).weights

    assert weights["embed"].sources == weights["lm_head"].sources == ("embed",)
    assert (weights["embed"].kind, weights["lm_head"].kind) == ("embedding", "linear")
    assert weights["embed"].format is None


def test_ropes_are_shared_by_layers_that_agree():
    far = replace(NORMED.attention, rope=replace(ROPE, theta=500.0))
    program = program_of(spec_of(PLAIN, replace(PLAIN, mixer=far), PLAIN))

    assert sorted(program.constants) == [f"const.rope.{i}.{f}" for i in (0, 1) for f in ("cos", "sin")]
    assert program.constants["const.rope.0.cos"].shape == (64, 8)


def test_kv_layers_know_their_group():
    program = program_of(SPECS["qk-norm, window"])

    assert [(k.layer, k.group, k.num_kv_heads, k.head_dim, k.dtype) for k in program.kv_layers] == [
        (0, 0, 2, 16, "bfloat16"),
        (1, 1, 2, 16, "bfloat16"),
    ]
    assert [group.window for group in program.kv_groups] == [None, 5]


def test_latents_are_a_group_of_their_own_and_keep_one_row_for_all_heads():
    program = program_of(spec_of(PLAIN, replace(PLAIN, mixer=LATENT)))

    assert [(g.layers, g.window, g.latent_dim) for g in program.kv_groups] == [
        ((0,), None, 0),
        ((1,), None, 24),
    ]
    assert [layer.values_per_token for layer in program.kv_layers] == [2 * 2 * 16, 24 + 8]


@pytest.mark.parametrize("name", ALL)
def test_the_price_of_a_step_is_dominated_by_what_it_must_be(name):
    program = program_of(ALL[name], "int8")
    params = sum(u.shape[0] * u.shape[1] for u in program.weights.values() if u.kind == "linear")
    one = program.cost({"T": 1, "R": 1, "B": 1, "S": 10})
    many = program.cost({"T": 64, "R": 64, "B": 64, "S": 10})

    assert 2 * params < one.flops < 2.5 * params
    assert one.bytes > params
    assert many.flops == pytest.approx(64 * one.flops)
    assert many.bytes < 64 * one.bytes


def test_fusing_saves_traffic_and_no_arithmetic_worth_naming():
    sizes = {"T": 8, "R": 8, "B": 8, "S": 30}
    for name, spec in ALL.items():
        plain = program_of(spec)
        before, after = plain.cost(sizes), fuse(plain).cost(sizes)

        assert after.bytes < before.bytes, name
        assert after.flops == pytest.approx(before.flops, rel=0.05), name


def test_fewer_bits_cost_fewer_bytes():
    sizes = {"T": 1, "R": 1, "B": 1, "S": 1}
    costs = [fuse(program_of(SPECS["plain"], f)).cost(sizes).bytes for f in ("float32", "bfloat16", "int8")]

    assert costs == sorted(costs, reverse=True)


def test_the_fingerprint_changes_with_whatever_changes_bits():
    spec = SPECS["plain"]
    prints = {
        program_of(spec).fingerprint(),
        program_of(spec, "float32").fingerprint(),
        program_of(spec_of(PLAIN, PLAIN)).fingerprint(),
        program_of(spec_of(replace(PLAIN, norm=NormSpec(1e-6)))).fingerprint(),
        program_of(
            spec_of(replace(PLAIN, mixer=replace(ATTENTION, rope=replace(ROPE, theta=5e5))))
        ).fingerprint(),
        fuse(program_of(spec)).fingerprint(),
    }

    assert len(prints) == 6
    assert program_of(spec).fingerprint() == program_of(spec).fingerprint()
