"""Every registered op keeps its contract: dims are true, rows do not see each other, inputs are kept."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from penstock.ops.attention import KVBlocks
from penstock.ops.contract import OPS, Op, Operand, op
from penstock.ops.pointwise import ACTIVATIONS, GATES
from penstock.ops.state_space import StateBlocks

SMALL = {
    "T": 5,
    "R": 3,
    "B": 2,
    "H": 48,
    "K": 192,
    "N": 33,
    "F": 40,
    "V": 50,
    "X": 9,
    "P": 4,
    "M": 3,
    "S": 12,
    "U": 14,
}
HEADS = SMALL | {"D": 16, "Q": 64, "O": 64, "C": 32, "r2": 8, "W": 16, "Y": 16, "h": 4, "J": 3}
LONG = HEADS | {"P": 64, "M": 20, "X": 41, "S": 1280, "T": 4}  # more than two splits of 512
ONE = SMALL | {"T": 1, "K": 1, "N": 1, "H": 1, "F": 1, "R": 1}
GQA = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 16}
ATTENTION = GQA | {"scale": 0.25, "window": None, "softcap": None, "to": "bfloat16"}
# One head of 16 latent dims and 8 that turn, read by four; values are the former.
LATENTS = HEADS | {"Q": 96, "O": 64, "C": 24, "latent_dim": 16, "r2": 4, "A": 64, "Z": 32, "W": 16}
LATENT_HEADS = {"num_heads": 4, "head_dim": 24, "latent_dim": 16}
LATENT_ATTENTION = ATTENTION | LATENT_HEADS | {"num_kv_heads": 1}
EXPERTS = {"T": 5, "E": 4, "Z": 2, "K": 6, "F": 8, "N": 4 * 16, "M": 4 * 6}
NORM = {"eps": 1e-5, "weight_offset": 0.0, "kind": "rms"}
LAYER = {"eps": 1e-5, "weight_offset": 0.0, "kind": "layer"}
WRITE = GQA | {"norm_row": False, "norm": NORM, "interleaved": False}

# A request for each row: those of one request follow from each other.
STATES = SMALL | {"B": 5, "X": 16, "J": 37, "U": 22, "O": 1, "W": 4, "h": 3, "D": 4, "N": 5, "Q": 12}
SCAN = {"num_heads": 3, "head_dim": 4, "state_size": 5, "num_groups": 1, "dt_limit": None}

CASES: list[tuple[str, Mapping[str, int], dict[str, Any]]] = [
    ("add", SMALL, {}),
    ("add_gated", SMALL | {"O": 1}, {}),
    ("attention", HEADS, ATTENTION),
    ("attention", HEADS, ATTENTION | {"to": "float32", "window": 3}),
    ("attention", HEADS, ATTENTION | {"softcap": 2.0}),
    ("attention", LONG, ATTENTION),
    ("attention", LONG, ATTENTION | {"window": 600, "to": "float32"}),
    ("attention", LATENTS, LATENT_ATTENTION),
    ("attention", LONG | LATENTS | {"S": 1280, "M": 20, "X": 41, "P": 64, "T": 4}, LATENT_ATTENTION),
    *[("activated", SMALL, {"act": act}) for act in ACTIVATIONS],
    *[("activated_operand", SMALL, {"act": "relu2", "to": to}) for to in ("float32", "bfloat16", "int8")],
    ("embed", SMALL, {}),
    ("embed", SMALL, {"scale": 3.0, "position_offset": 2}),
    ("embed_positions", SMALL, {"offset": 2}),
    *[("gated", SMALL, {"act": act}) for act in (*ACTIVATIONS, *GATES)],
    *[("gated_operand", SMALL, {"act": "silu", "to": to}) for to in ("float32", "bfloat16", "int8")],
    ("head_norm", HEADS, NORM | {"span": 16}),
    ("head_norm", HEADS | {"W": 64}, LAYER | {"span": 16}),
    ("head_norm", HEADS | {"W": 64}, NORM | {"span": 64}),
    *[("heads_operand", SMALL, {"num_heads": 3, "to": to}) for to in ("float32", "bfloat16", "int8")],
    ("heads_linear", SMALL | {"A": 3 * 8, "K": 8, "N": 3 * 5}, {"num_heads": 3}),
    ("join", SMALL | {"A": 3, "W": 5}, {}),
    ("join_heads", SMALL | {"A": 6, "W": 9}, {"num_heads": 3}),
    *[
        (
            "latent_rope_write",
            LATENTS,
            LATENT_HEADS | {"norm": NORM, "interleaved": is_paired, "to": to, "kv_to": kv_to},
        )
        for is_paired, to, kv_to in ((True, "bfloat16", "int8"), (False, "float32", "float32"))
    ],
    ("kv_write", HEADS, {}),
    ("linear", SMALL, {}),
    ("linear", ONE, {}),
    ("linear", SMALL | {"K": 1000, "N": 7}, {}),
    ("linear", SMALL, {"scale": 0.3}),
    ("linear_add", SMALL, {}),
    ("linear_add", SMALL, {"scale": 0.3}),
    ("norm", SMALL, NORM),
    ("norm", SMALL, LAYER),
    ("norm", SMALL | {"H": 1000}, {"eps": 1e-6, "weight_offset": 1.0, "kind": "rms"}),
    *[("norm_add", SMALL, norm) for norm in (NORM, LAYER)],
    *[("norm_operand", SMALL, NORM | {"to": to}) for to in ("float32", "bfloat16", "int8")],
    ("norm_operand", SMALL, LAYER | {"to": "bfloat16"}),
    *[("operand", size, {"to": to}) for to in ("float32", "bfloat16", "int8") for size in (SMALL, ONE)],
    *[("expert_mlp", EXPERTS, {"num_experts": 4, "act": "silu", "to": to}) for to in ("float32", "bfloat16")],
    *[("route", EXPERTS, {"top_k": 2, "score": score}) for score in ("softmax", "sigmoid", "softmax_chosen")],
    (
        "route",
        EXPERTS | {"E": 8, "Z": 3},
        {"top_k": 3, "renormalize": True, "num_groups": 4, "groups_kept": 2},
    ),
    ("rope", HEADS, {"head_dim": 16}),
    ("rope", HEADS, {"head_dim": 16, "interleaved": True}),
    ("rope", HEADS | {"r2": 4}, {"head_dim": 16}),
    *[("round", HEADS | {"K": 48}, {"to": to, "head_dim": 16}) for to in ("float32", "bfloat16", "int8")],
    ("rows_norm_operand", SMALL, NORM | {"to": "bfloat16"}),
    ("softcap", SMALL, {"cap": 3.0}),
    *[("split_rope_write", HEADS, WRITE | {"to": to, "kv_to": to}) for to in ("float32", "bfloat16")],
    (
        "split_rope_write",
        HEADS | {"W": 64, "Y": 32},
        WRITE | {"norm": LAYER, "to": "bfloat16", "kv_to": "int8"},
    ),
    (
        "split_rope_write",
        HEADS | {"W": 64, "Y": 32, "r2": 3},
        WRITE | {"norm_row": True, "interleaved": True, "to": "float32", "kv_to": "float32"},
    ),
    ("take_rows", SMALL, {}),
    ("causal_conv", STATES, {"first": 10}),
    ("selective_scan", STATES, SCAN),
    ("selective_scan", STATES | {"U": 12 + 2 * 3 * 5}, SCAN | {"num_groups": 3, "dt_limit": (0.1, 0.9)}),
    ("gated_norm", STATES, {"span": 6, "eps": 1e-5}),
    *[("gated_norm_operand", STATES, {"span": 12, "eps": 1e-5, "to": to}) for to in ("bfloat16", "int8")],
]
IDS = [f"{name}-{index}" for index, (name, _, _) in enumerate(CASES)]
WITHOUT_OPTIONALS = [c for c in CASES if any(operand.is_optional for operand in OPS[c[0]].inputs)]


def make_inputs(op: Op, sizes: Mapping[str, int], seed: int = 0, *, with_optionals: bool = True) -> list[Any]:
    """Random operands of the shapes that `dims` states; rows of a request at distinct positions."""
    rng = np.random.default_rng(seed)
    return [None if o.is_optional and not with_optionals else make_operand(o, sizes, rng) for o in op.inputs]


def make_operand(operand: Operand, sizes: Mapping[str, int], rng: np.random.Generator) -> Any:
    if operand.name == "state":
        inputs, states = (sizes["X"], sizes["W"] - 1, sizes["U"]), (sizes[s] for s in "XhDN")
        made = (rng.standard_normal(tuple(shape), np.float32) for shape in (inputs, states))
        return StateBlocks(*made, block_size=sizes["P"])
    if operand.name == "row_request" and sizes["B"] == sizes["T"]:
        return np.arange(sizes["B"], dtype=np.int32)
    if operand.dims is None:
        shape = (sizes["X"], sizes["P"], sizes["C"])
        keys, values = (rng.standard_normal(shape, np.float32) for _ in range(2))
        return KVBlocks(keys, keys[..., : sizes["latent_dim"]] if "latent_dim" in sizes else values)
    shape = tuple(dim.size(sizes) for dim in operand.dims)
    if operand.name == "block_table":
        ids = 1 + rng.permutation(sizes["X"] - 1)  # 0 is no block
        return ids[: shape[0] * shape[1]].reshape(shape).astype(np.int32)
    if operand.name in {"positions", "slots"}:
        return rng.permutation(sizes[operand.below])[: shape[0]].astype(np.int32)
    if operand.name == "routing":
        experts = np.array([rng.permutation(4)[: shape[1] // 2] for _ in range(shape[0])], np.float32)
        return np.concatenate([experts, rng.random(experts.shape, np.float32)], axis=1)
    if operand.name == "context_len":
        return np.full(shape, sizes["S"], np.int32)
    if operand.below is not None:
        return rng.integers(0, sizes[operand.below], shape).astype(np.int32)
    return rng.standard_normal(shape, np.float32) * np.float32(2)


def copied(inputs: list[Any]) -> list[Any]:
    return [
        None if x is None else x.copy() if isinstance(x, np.ndarray) else copied_blocks(x) for x in inputs
    ]


def copied_blocks(kv: KVBlocks | StateBlocks) -> KVBlocks | StateBlocks:
    if isinstance(kv, StateBlocks):
        return StateBlocks(kv.inputs.copy(), kv.states.copy(), kv.block_size)
    keys = kv.keys.copy()
    is_view = np.shares_memory(kv.keys, kv.values)
    return KVBlocks(keys, keys[..., : kv.values.shape[-1]] if is_view else kv.values.copy())


def bytes_of(value: Any) -> bytes:
    if isinstance(value, StateBlocks):
        return value.inputs.tobytes() + value.states.tobytes()
    return value.keys.tobytes() + value.values.tobytes() if isinstance(value, KVBlocks) else value.tobytes()


def unaligned(x: Any) -> Any:
    """The same values, 4 bytes off every boundary."""
    if not isinstance(x, np.ndarray):
        return x
    room = np.empty(x.nbytes + 68, np.uint8)
    start = -room.ctypes.data % 64 + 4
    place = room[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    place[...] = x
    return place


def assert_rows_are_independent(op: Op, inputs: list[Any], attrs: Mapping[str, Any]) -> None:
    """Every output row, computed alone, has the bytes it has in company."""
    letter = op.output.dims[0].terms[0][0]
    together = op(*copied(inputs), **attrs)
    for i, row in enumerate(together):
        alone_inputs = [
            x[i : i + 1] if o.dims and o.dims[0].terms == ((letter, 1),) and x is not None else x
            for o, x in zip(op.inputs, copied(inputs), strict=True)
        ]
        (alone,) = op(*alone_inputs, **attrs)

        assert alone.tobytes() == row.tobytes(), f"row {i} of {op.name}"


def test_every_op_has_a_case():
    assert {name for name, _, _ in CASES} == set(OPS)


@pytest.mark.parametrize(("name", "sizes", "attrs"), CASES, ids=IDS)
def test_dims_state_the_shape_that_comes_out(name, sizes, attrs):
    made = OPS[name](*make_inputs(OPS[name], sizes), **attrs)
    dims = OPS[name].output.dims

    if dims is None:
        assert isinstance(made, KVBlocks)
    else:
        assert made.shape == tuple(dim.size(sizes) for dim in dims)
        assert made.dtype == np.float32
        assert np.isfinite(made).all()


@pytest.mark.parametrize(("name", "sizes", "attrs"), CASES, ids=IDS)
def test_only_what_is_declared_is_written(name, sizes, attrs):
    inputs = make_inputs(OPS[name], sizes)
    before = [None if x is None else bytes_of(x) for x in inputs]
    OPS[name](*inputs, **attrs)
    changed = {
        o.name
        for o, x, old in zip(OPS[name].inputs, inputs, before, strict=True)
        if x is not None and bytes_of(x) != old
    }

    assert changed == set(OPS[name].mutates)


@pytest.mark.parametrize(("name", "sizes", "attrs"), CASES, ids=IDS)
def test_rows_do_not_see_each_other(name, sizes, attrs):
    if OPS[name].output.dims is not None:
        assert_rows_are_independent(OPS[name], make_inputs(OPS[name], sizes), attrs)


@pytest.mark.parametrize(("name", "sizes", "attrs"), WITHOUT_OPTIONALS)
def test_optional_operands_may_be_missing(name, sizes, attrs):
    inputs = make_inputs(OPS[name], sizes, with_optionals=False)
    made = OPS[name](*copied(inputs), **attrs)

    assert bytes_of(made) != bytes_of(OPS[name](*make_inputs(OPS[name], sizes), **attrs))
    if OPS[name].output.dims is None:
        return
    assert_rows_are_independent(OPS[name], inputs, attrs)


@pytest.mark.parametrize(("name", "sizes", "attrs"), CASES, ids=IDS)
def test_where_arrays_lie_in_memory_does_not_matter(name, sizes, attrs):
    inputs = make_inputs(OPS[name], sizes)
    here = bytes_of(OPS[name](*copied(inputs), **attrs))
    there = bytes_of(OPS[name](*[unaligned(x) for x in copied(inputs)], **attrs))

    assert there == here


@pytest.mark.parametrize(
    ("name", "attrs"), [("kv_write", {}), ("split_rope_write", WRITE | {"to": "bfloat16", "kv_to": "int8"})]
)
def test_the_cache_is_the_same_whether_rows_come_together_or_alone(name, attrs):
    op = OPS[name]
    inputs = make_inputs(op, HEADS)
    state = next(i for i, o in enumerate(op.inputs) if o.dims is None)
    together, alone = copied(inputs), copied(inputs)
    op(*together, **attrs)
    for i in reversed(range(HEADS["T"])):
        row = [
            x[i : i + 1] if o.dims and o.dims[0].terms == (("T", 1),) else x
            for o, x in zip(op.inputs, alone, strict=True)
        ]
        op(*row, **attrs)

    assert bytes_of(alone[state]) == bytes_of(together[state])


def test_the_check_of_rows_notices_an_op_that_looks_at_its_batch():
    def centred(x: np.ndarray) -> np.ndarray:
        return x - x.mean(axis=0)

    bad = Op("centred", "x[T,K] -> y[T,K]", centred, {}, lambda d: d["T"])
    with pytest.raises(AssertionError, match="row 0 of centred"):
        assert_rows_are_independent(bad, make_inputs(bad, SMALL), {})


def test_two_ops_cannot_share_a_name():
    with pytest.raises(AssertionError, match="registered twice"):
        op(dims="x[T,K] -> y[T,K]", tolerance={}, flops=lambda d: d["T"], name="add")(lambda x: x)


def composition(name: str, inputs: list[Any], attrs: Mapping[str, Any]) -> np.ndarray:
    """What a fused op is defined to be, from the plain ops."""
    run = {n: OPS[n] for n in OPS}
    a = dict(attrs)
    if name == "linear_add":
        x, weight, bias, residual = inputs
        return run["add"](residual, run["linear"](x, weight, bias, **a))
    if name == "gated_operand":
        width = inputs[0].shape[1] // 2
        gate, up = inputs[0][:, :width].copy(), inputs[0][:, width:].copy()
        return run["operand"](run["gated"](gate, up, act=a["act"]), to=a["to"])
    if name == "activated_operand":
        return run["operand"](run["activated"](*inputs, act=a["act"]), to=a["to"])
    if name == "gated_norm_operand":
        return run["operand"](run["gated_norm"](*inputs, span=a["span"], eps=a["eps"]), to=a["to"])
    if name == "split_rope_write":
        return split_rope_write(inputs, a)
    if name == "latent_rope_write":
        return latent_rope_write(inputs, a)
    norm = {k: a[k] for k in ("eps", "weight_offset", "kind")}
    if name == "norm_add":
        return run["add"](inputs[3], run["norm"](*inputs[:3], **norm))
    if name == "rows_norm_operand":
        x, rows, weight, bias = inputs
        return run["operand"](run["norm"](run["take_rows"](x, rows), weight, bias, **norm), to=a["to"])
    return run["operand"](run["norm"](*inputs, **norm), to=a["to"])


def split_rope_write(inputs: list[Any], a: Mapping[str, Any]) -> np.ndarray:
    """The queries alone; what is cached is compared by the programs of tests/unit/model."""
    qkv, q_norm, _, positions, _, cos, sin, *_ = inputs
    width = a["num_heads"] * a["head_dim"]
    q = qkv[:, :width].copy()
    q = OPS["head_norm"](q, q_norm, span=width if a["norm_row"] else a["head_dim"], **a["norm"])
    q = OPS["rope"](q, positions, cos, sin, head_dim=a["head_dim"], interleaved=a["interleaved"])
    return OPS["round"](q, to=a["to"])


def latent_rope_write(inputs: list[Any], a: Mapping[str, Any]) -> np.ndarray:
    """The queries alone, as above."""
    _, q_latent, q_rope, _, positions, _, cos, sin, *_ = inputs
    rope_dim = a["head_dim"] - a["latent_dim"]
    turned = OPS["rope"](q_rope, positions, cos, sin, head_dim=rope_dim, interleaved=a["interleaved"])
    return OPS["round"](OPS["join_heads"](q_latent, turned, num_heads=a["num_heads"]), to=a["to"])


FUSED_OPS = {"linear_add", "gated_operand", "activated_operand", "split_rope_write", "latent_rope_write"}
FUSED_OPS |= {"gated_norm_operand", "rows_norm_operand", "norm_operand", "norm_add"}
FUSED = [c for c in CASES if c[0] in FUSED_OPS]


@pytest.mark.parametrize(("name", "sizes", "attrs"), FUSED)
def test_a_fused_op_is_its_parts_bit_for_bit(name, sizes, attrs):
    inputs = make_inputs(OPS[name], sizes)

    assert OPS[name](*inputs, **attrs).tobytes() == composition(name, inputs, attrs).tobytes()


@pytest.mark.parametrize(("name", "attrs"), [("causal_conv", {"first": 10}), ("selective_scan", SCAN)])
@pytest.mark.parametrize("cuts", [[3], [4], [1, 2, 4, 7, 8, 9]])
def test_a_state_is_the_same_however_its_rows_are_divided_into_steps(name, attrs, cuts):
    """Blocks of 4: what a step ends with, and what lies at the ends of places, has one value."""
    sizes = STATES | {"T": 11, "B": 1, "M": 3}
    inputs = make_inputs(OPS[name], sizes)
    for i, operand in enumerate(OPS[name].inputs):
        if operand.name in {"positions", "row_request"}:
            inputs[i] = np.arange(11, dtype=np.int32) * (operand.name == "positions")
    whole, parts = copied(inputs), copied(inputs)
    expected = OPS[name](*whole, **attrs)
    made = []
    for begin, end in zip([0, *cuts], [*cuts, 11], strict=True):
        rows = [
            x[begin:end] if o.dims and o.dims[0].terms == (("T", 1),) else x
            for o, x in zip(OPS[name].inputs, parts, strict=True)
        ]
        made.append(OPS[name](*rows, **attrs))

    assert np.concatenate(made).tobytes() == expected.tobytes()
    states = [next(x for x in side if isinstance(x, StateBlocks)) for side in (whole, parts)]
    assert bytes_of(states[0]) == bytes_of(states[1])


def test_a_place_without_a_block_is_passed_and_no_step_may_end_there():
    sizes = STATES | {"T": 11, "B": 1, "M": 3}
    inputs = make_inputs(OPS["selective_scan"], sizes)
    xbc, x, *heads, state, _, _, table = inputs
    rows = [np.arange(11, dtype=np.int32), np.zeros(11, np.int32)]
    expected = OPS["selective_scan"](xbc, x, *heads, *copied([state]), *rows, table, **SCAN)
    table[0, 1] = 0
    before = state.states.copy()
    made = OPS["selective_scan"](xbc, x, *heads, state, *rows, table, **SCAN)

    assert made.tobytes() == expected.tobytes()
    assert {b for b in range(16) if (state.states[b] != before[b]).any()} == {table[0, 0], table[0, 2]}
    with pytest.raises(AssertionError, match="lost"):
        OPS["selective_scan"](xbc[:8], x[:8], *heads, state, *(r[:8] for r in rows), table, **SCAN)
