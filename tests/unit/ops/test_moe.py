"""Routing and experts, said again in plain loops."""

import numpy as np
import pytest

from penstock.model.program import Call
from penstock.ops.moe import expert_mlp, route


def test_ties_go_to_the_lowest_index():
    logits = np.array([[1, 3, 3, 3, 0], [2, 2, 2, 2, 2]], np.float32)
    chosen = route(logits, top_k=2)[:, :2]

    assert chosen.tolist() == [[1, 2], [0, 1]]


def test_the_best_comes_first_and_weights_are_of_all_experts():
    logits = np.log(np.array([[0.1, 0.4, 0.2, 0.3]], np.float32))
    routing = route(logits, top_k=2)[0]

    assert routing[:2].tolist() == [1, 3]
    np.testing.assert_allclose(routing[2:], [0.4, 0.3], rtol=1e-6)


def test_weights_can_be_made_to_sum_to_one_and_scaled():
    logits = np.log(np.array([[0.1, 0.4, 0.2, 0.3]], np.float32))
    routing = route(logits, top_k=2, renormalize=True, scale=2.5)[0]

    np.testing.assert_allclose(routing[2:], [2.5 * 4 / 7, 2.5 * 3 / 7], rtol=1e-6)


def test_softmax_over_the_chosen_is_softmax_over_all_renormalized():
    logits = np.random.default_rng(0).standard_normal((9, 16)).astype(np.float32)
    over_all = route(logits, top_k=4, renormalize=True)
    over_chosen = route(logits, top_k=4, score="softmax_chosen")

    assert (over_all[:, :4] == over_chosen[:, :4]).all()
    np.testing.assert_allclose(over_all[:, 4:], over_chosen[:, 4:], rtol=1e-5)


def test_a_correction_changes_the_choice_and_not_the_weight():
    logits = np.array([[0, 1, -1]], np.float32)
    correction = np.array([0, 0, 10], np.float32)
    routing = route(logits, correction, top_k=1, score="sigmoid")[0]

    assert routing[0] == 2
    np.testing.assert_allclose(routing[1], 1 / (1 + np.e), rtol=1e-6)


@pytest.mark.parametrize("correction", [None, np.zeros(6, np.float32)])
def test_only_experts_of_the_best_groups_are_chosen(correction):
    """Groups of two. One good expert: the best by its best; with a correction, two fair ones are better."""
    logits = np.array([[3, -3, 2, 2, -1, -1]], np.float32)
    chosen = route(logits, correction, top_k=2, score="sigmoid", num_groups=3, groups_kept=1)[0, :2]

    assert chosen.tolist() == ([0, 1] if correction is None else [2, 3])


def test_outputs_are_summed_in_slot_order():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((3, 4)).astype(np.float32)
    gate_up = rng.standard_normal((3 * 10, 4)).astype(np.float32)
    down = rng.standard_normal((3 * 4, 5)).astype(np.float32)
    routing = np.array([[2, 0, 0.5, 0.25], [1, 2, 1, 1], [0, 1, 0, 2]], np.float32)
    y = expert_mlp(x, routing, gate_up, None, down, None, num_experts=3, act="silu", to="float32")
    for t, row in enumerate(x.astype(np.float64)):
        expected = np.zeros(4)
        for s in range(2):
            e = int(routing[t, s])
            gate, up = gate_up[10 * e : 10 * e + 5] @ row, gate_up[10 * e + 5 : 10 * e + 10] @ row
            expected += routing[t, 2 + s] * (down[4 * e : 4 * e + 4] @ (gate / (1 + np.exp(-gate)) * up))

        np.testing.assert_allclose(y[t], expected, rtol=1e-4, atol=1e-5)


def test_biases_are_each_experts_own():
    x, routing = np.zeros((1, 2), np.float32), np.array([[1, 1]], np.float32)
    gate_up, down = np.zeros((2 * 4, 2), np.float32), np.zeros((2 * 2, 2), np.float32)
    down_bias = np.array([1, 2, 3, 4], np.float32)
    y = expert_mlp(x, routing, gate_up, None, down, down_bias, num_experts=2, act="silu", to="float32")

    assert y.tolist() == [[3, 4]]


def test_a_step_pays_for_the_experts_it_reaches():
    call = Call(expert_mlp, (), "y", {})
    sizes = {"T": 1, "Z": 2, "K": 4, "F": 8, "N": 16 * 16, "M": 16 * 4}
    one, many = (call.op.cost(sizes | {"T": t}, {}) for t in (1, 1000))

    assert one.bytes < 4 * (256 * 4 + 64 * 8) / 4
    assert many.flops == 1000 * one.flops
