"""Floors by hand: bytes over bandwidth or operations over peak, whichever is more."""

import pytest

from penstock.backends.cpu.probe import Measured
from penstock.bench.floor import floor_of
from penstock.config import EngineConfig
from penstock.engine.build import load_model

MEASURED = Measured("avx512", 2, read_bytes_per_s=1e10, float32_flops_per_s=1e11, int8_ops_per_s=4e11)
LAYER = 256 * (256 + 2 * 128) + 256 * 256 + 3 * 256 * 768  # qkv, output, gate up down
LAYERS, VOCABULARY = 12, 8192
WEIGHTS = LAYERS * LAYER + VOCABULARY * 256  # and the head
KV_TOKEN = LAYERS * 2 * 2 * 64 * 2  # layers, keys and values, heads, head_dim, bf16


@pytest.fixture(scope="module")
def program():
    return load_model("penstock-tiny", EngineConfig()).program


def test_one_row_is_bound_by_its_weights_and_its_cache(program):
    floor = floor_of(program, MEASURED, num_rows=1, num_logit_rows=1, num_requests=1, context=100)

    assert floor.bytes == 2 * WEIGHTS + 100 * KV_TOKEN
    assert floor.bound == "memory"
    assert floor.seconds == pytest.approx(floor.bytes / 1e10)


def test_many_rows_are_bound_by_their_products(program):
    floor = floor_of(program, MEASURED, num_rows=512, num_logit_rows=1, num_requests=1, context=256)
    products = 2 * (512 * LAYERS * LAYER + VOCABULARY * 256)
    attention = (
        512 * LAYERS * 4 * 256 * 256
    )  # layers, two products of query width by context, two operations each

    assert floor.bound == "compute"
    assert floor.flops == pytest.approx(products + attention, rel=0.02)  # norms and softmax are little
    assert floor.seconds == pytest.approx(floor.flops / 1e11)


def test_a_row_without_logits_reads_no_head(program):
    with_head = floor_of(program, MEASURED, num_rows=1, num_logit_rows=1, num_requests=1, context=1)
    without = floor_of(program, MEASURED, num_rows=1, num_logit_rows=0, num_requests=1, context=1)

    assert with_head.bytes - without.bytes == 2 * VOCABULARY * 256


def test_integer_weights_are_smaller_and_count_against_the_integer_peak():
    loaded = load_model("penstock-tiny", EngineConfig(weights="int8"))
    floor = floor_of(loaded.program, MEASURED, num_rows=512, num_logit_rows=512, num_requests=1, context=1)
    products = 2 * 512 * WEIGHTS

    assert floor.bytes < 1.1 * WEIGHTS
    assert products / 4e11 < floor.seconds < products / 4e11 + 0.1 * products / 1e11
