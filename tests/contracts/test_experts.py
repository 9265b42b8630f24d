"""Native experts: routing and grouped MLPs of every instruction set, against the ops and one another."""

from typing import Any

import numpy as np
import pytest

from penstock.backends.cpu.kernels import refusals
from penstock.model.build import build
from penstock.model.family import read_model
from penstock.model.passes.fuse import fuse
from penstock.ops.contract import Array
from penstock.ops.linear import linear
from penstock.ops.moe import expert_mlp, route
from penstock.ops.pointwise import add_gated
from penstock.ops.rounding import operand
from penstock.weights.format import FORMATS

native = pytest.importorskip("penstock._native")
ISAS = native.isas()
HIDDEN, INNER, EXPERTS, TOP_K, ROWS = 160, 80, 7, 3, 37
OPERANDS = {
    "float32": "float32",
    "bfloat16": "bfloat16",
    "int8": "int8",
    "int4_g32": "int8",
    "int4_g64": "bfloat16",
}
TOLERANCE = {"float32": 2e-5, "bfloat16": 2**-7, "int8": 2**-6}


def aligned(packed: Array) -> Array:
    """A copy at an address that is a multiple of 64, as kernels want it."""
    room = np.empty(packed.nbytes + 64, np.uint8)
    out = room[-room.ctypes.data % 64 :][: packed.nbytes]
    out[:] = packed
    return out


class Step:
    """A native program over rows given as embeddings, and the arrays of a step that runs it."""

    def __init__(self, isa: str, x: Array, *, threads: int = 1, max_rows: int = ROWS) -> None:
        self.x, self.num_rows, self._end = x, len(x), 0
        self.max_rows = max_rows
        self.native = native.Program(isa, native.Pool(threads), 1 << 24, max_rows, 64, max_rows, 4, [1])
        self.table = np.zeros((max_rows, x.shape[1]), np.float32)
        self.table[: len(x)] = x

    def embedded(self) -> int:
        value = self.floats(self.x.shape[1])
        self.native.embed(self.table, "float32", 1.0, None, "float32", 0, value)
        return value

    def floats(self, width: int, rows: int | None = None) -> int:
        rows = rows or self.max_rows
        return self.native.floats(self._place(-(-rows // 16) * 16 * width * 4 + 64), width, rows)

    def operand(self, kind: str, width: int, rows: int | None = None) -> int:
        rows = rows or self.max_rows
        return self.native.operand(self._place(native.operand_bytes(kind, rows, width)), kind, width, rows)

    def _place(self, num_bytes: int) -> int:
        at, self._end = self._end, self._end + -(-num_bytes // 4096) * 4096
        return at

    def run(self, *values: int) -> list[Array]:
        count = self.num_rows
        ints = np.arange(count, dtype=np.int32)
        none, no_floats, start = np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(1, np.int32)
        empty: list[Any] = [
            *[no_floats, none, *[no_floats] * 6, np.zeros(0, np.uint64), np.zeros(0, np.int64), none, none],
            *[start, none, none, start, none, no_floats, None, none, no_floats, none],
            *[np.zeros((0, 0), np.int32), np.zeros((0, 0), np.float32), None, [], None],
        ]
        self.native.run(
            ints, ints, np.array([0, count], np.int32), np.array([count], np.int32), ints * 0,
            [np.zeros((1, 1), np.int32)], none, *empty,
        )  # fmt: skip
        return [self.native.read(value, count) for value in values]


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


ROUTES = [
    {},
    {"score": "sigmoid", "renormalize": True, "scale": 2.5},
    {"score": "softmax_chosen"},
    {"score": "sigmoid", "num_groups": 4, "groups_kept": 2, "renormalize": True, "corrected": True},
    {"num_groups": 4, "groups_kept": 1, "scale": 16.0},
]


@pytest.mark.parametrize("how", ROUTES, ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_routing_is_that_of_the_op_and_ties_go_to_the_lowest_index(isa: str, how: dict[str, Any]) -> None:
    logits = 3 * random(19, 24)
    logits[3] = 0  # all alike
    logits[4] = np.round(logits[4])  # some alike
    attrs = {"renormalize": False, "scale": 1.0, "num_groups": 1, "groups_kept": 1, "score": "softmax"} | how
    correction = random(24, seed=1) if attrs.pop("corrected", False) else None
    found = []
    for name in (isa, ISAS[0]):
        step = Step(name, logits)
        out = step.floats(10)
        step.native.route(
            step.embedded(), correction, 5, attrs["score"], attrs["renormalize"], attrs["scale"],
            attrs["num_groups"], attrs["groups_kept"], out,
        )  # fmt: skip
        found.append(step.run(out)[0])
    expected = route(logits, correction, top_k=5, **attrs)

    assert np.array_equal(found[0][:, :5], expected[:, :5])
    assert np.allclose(found[0][:, 5:], expected[:, 5:], rtol=1e-5, atol=1e-7)
    assert found[0].tobytes() == found[1].tobytes()


class Experts:
    """Random experts in one format, and what they are to the op."""

    def __init__(self, format: str, *, has_bias: bool = False) -> None:
        self.format, self.to = format, OPERANDS[format]
        self.shapes = ((EXPERTS * 2 * INNER, HIDDEN), (EXPERTS * HIDDEN, INNER))
        weights = [random(*shape) / np.float32(np.sqrt(shape[1])) for shape in self.shapes]
        self.packed = [aligned(FORMATS[format].pack(weight)) for weight in weights]
        self.weights = [
            FORMATS[format].unpack(packed, *shape)
            for packed, shape in zip(self.packed, self.shapes, strict=True)
        ]
        self.biases = [random(shape[0], seed=2) if has_bias else None for shape in self.shapes]
        self.router = random(EXPERTS, HIDDEN, seed=3) / np.float32(6)

    def run(self, isa: str, x: Array, *, threads: int = 1, max_rows: int = ROWS) -> tuple[Array, Array]:
        """(routing, y)"""
        step = Step(isa, x, threads=threads, max_rows=max_rows)
        h, row, a = step.embedded(), step.operand("float32", HIDDEN), step.operand(self.to, HIDDEN)
        step.native.to_operand(h, False, row)
        step.native.to_operand(h, False, a)
        logits, routing, y = step.floats(EXPERTS), step.floats(2 * TOP_K), step.floats(HIDDEN)
        router = aligned(FORMATS["float32"].pack(self.router))
        step.native.linear(router, "float32", EXPERTS, HIDDEN, row, logits, None, 1.0, -1, False)
        step.native.route(logits, None, TOP_K, "softmax", True, 1.0, 1, 1, routing)
        rows = native.expert_rows(max_rows, TOP_K, EXPERTS)
        values = [step.operand(self.to, HIDDEN, rows), step.floats(2 * INNER, rows)]
        values += [step.operand(self.to, INNER, rows), step.floats(HIDDEN, rows)]
        (n_in, k_in), (n_out, k_out) = self.shapes
        step.native.experts(
            a, routing, self.packed[0], self.format, n_in, k_in, self.biases[0], self.packed[1], self.format,
            n_out, k_out, self.biases[1], EXPERTS, "silu", values, EXPERTS, y,
        )  # fmt: skip
        found = step.run(routing, y)
        return found[0], found[1]


@pytest.mark.parametrize("format", OPERANDS)
@pytest.mark.parametrize("isa", ISAS)
def test_experts_are_those_of_the_op_and_have_one_set_of_bits(isa: str, format: str) -> None:
    x = random(ROWS, HIDDEN, seed=4)
    x[5:9] = x[4]  # several rows of one choice
    experts = Experts(format, has_bias=format == "bfloat16")
    routing, y = experts.run(isa, x)
    logits = linear(x, experts.router)
    expected = expert_mlp(
        operand(x, to=experts.to), routing, experts.weights[0], experts.biases[0], experts.weights[1],
        experts.biases[1], num_experts=EXPERTS, act="silu", to=experts.to,
    )  # fmt: skip

    assert np.array_equal(routing[:, :TOP_K], route(logits, top_k=TOP_K, renormalize=True)[:, :TOP_K])
    assert len(set(routing[:, :TOP_K].ravel())) == EXPERTS
    assert np.abs(y - expected).max() <= TOLERANCE[experts.to] * np.abs(expected).max()
    assert y.tobytes() == experts.run(ISAS[0], x)[1].tobytes()


@pytest.mark.parametrize("format", ["float32", "bfloat16", "int8", "int4_g32"])
@pytest.mark.parametrize("isa", ISAS)
def test_a_row_of_experts_does_not_see_its_neighbours_or_the_threads(isa: str, format: str) -> None:
    x = random(ROWS, HIDDEN, seed=5)
    experts = Experts(format)
    whole = experts.run(isa, x)[1]

    assert experts.run(isa, x, threads=2)[1].tobytes() == whole.tobytes()
    assert experts.run(isa, x[::-1].copy())[1][::-1].tobytes() == whole.tobytes()
    for row in (0, 17, 36):
        assert experts.run(isa, x[row : row + 1], max_rows=100)[1].tobytes() == whole[row].tobytes()


@pytest.mark.parametrize("isa", ISAS)
def test_a_shared_expert_is_added_by_its_gate(isa: str) -> None:
    x = random(9, 40)
    results = []
    for name in (isa, ISAS[0]):
        step = Step(name, x)
        h, z, plain = step.embedded(), step.floats(40), step.floats(40)
        step.native.add(h, h, h, z)  # the gate is the first value of each row
        step.native.add(h, z, -1, plain)
        results.append(step.run(z, plain))

    assert np.allclose(results[0][0], add_gated(x, x, x), rtol=1e-5, atol=1e-6)
    assert np.array_equal(results[0][1], x + results[0][0])
    assert [r.tobytes() for r in results[0]] == [r.tobytes() for r in results[1]]


def test_experts_that_do_not_fit_are_refused_before_anything_runs() -> None:
    step = Step(ISAS[0], random(2, 64))
    logits, routing = step.embedded(), step.floats(6)
    with pytest.raises(ValueError, match="experts out of range"):
        step.native.route(logits, None, 3, "softmax", False, 1.0, 32, 1, routing)
    with pytest.raises(ValueError, match="score"):
        step.native.route(logits, None, 3, "best", False, 1.0, 1, 1, routing)


QWEN3_MOE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 1,
    "vocab_size": 60,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "head_dim": 32,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}


@pytest.mark.parametrize(("width", "reasons"), [(48, 0), (40, 1)])
def test_experts_without_whole_panels_run_on_the_reference_and_it_is_said(width: int, reasons: int) -> None:
    spec = read_model(QWEN3_MOE | {"moe_intermediate_size": width})
    program = fuse(build(spec, weight_format="int8", head_format="int8", kv_dtype="bfloat16", max_context=64))
    found = refusals(program)

    assert len(found) == reasons
    assert all("experts of 80 columns" in reason for reason in found)
    assert program.weights["layers.0.mlp.router"].format == "float32"
