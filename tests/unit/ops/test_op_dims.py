"""The dims language, and prices that follow from it."""

import pytest

from penstock.ops.contract import OPS, Cost, Op, parse_dims


def test_operands_are_read_with_sizes_bounds_and_options():
    inputs, output = parse_dims("x[T,Q+2C], rows[R]:T, bias[N]?, kv -> y[R,2F]")

    assert [o.name for o in inputs] == ["x", "rows", "bias", "kv"]
    assert inputs[0].dims[1].terms == (("Q", 1), ("C", 2))
    assert inputs[1].below == "T"
    assert [o.is_optional for o in inputs] == [False, False, True, False]
    assert inputs[3].dims is None
    assert output.dims[1].size({"F": 5}) == 10


@pytest.mark.parametrize("dims", ["x[T, -> y[T]", "x y -> z[T]", "x[3*T] -> y[T]"])
def test_a_malformed_dims_string_is_refused_at_import(dims):
    with pytest.raises(AssertionError, match="not a"):
        Op("bad", dims, lambda x: x, {}, lambda d: 0)


def test_a_linear_moves_its_weights_once_and_multiplies_for_every_row():
    cost = OPS["linear"].cost({"T": 3, "K": 8, "N": 5}, {"weight": 0.5, "x": 2, "bias": 0})

    assert cost == Cost(flops=2 * 3 * 8 * 5, bytes=3 * 8 * 2 + 8 * 5 * 0.5 + 3 * 5 * 4)


def test_attention_reads_the_keys_and_values_of_every_request_once():
    sizes = {"T": 2, "Q": 64, "O": 64, "E": 32, "C": 16, "S": 100, "B": 2}
    cost = OPS["attention"].cost(sizes, {"kv": 2})

    assert cost.flops == 4 * 2 * 100 * 64
    assert cost.bytes == 8 * 2 * 64 + 2 * (2 * 100 * 16) * 2


def test_costs_add_up():
    assert Cost(1, 2) + Cost(10, 20) == Cost(11, 22)
