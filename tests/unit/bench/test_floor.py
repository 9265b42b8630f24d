"""Floors by hand: bytes over bandwidth or operations over peak, whichever is more."""

from dataclasses import replace
from pathlib import Path

import pytest

from penstock.backends.cpu.probe import Measured
from penstock.bench.floor import floor_of
from penstock.config import EngineConfig
from penstock.engine.build import load_model
from penstock.model.build import build
from penstock.model.family import read_model

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


def of_golden(name: str, kv_dtype: str):
    spec = read_model(Path(__file__).parents[2] / "goldens" / "parity" / name)
    program = build(
        spec, weight_format="bfloat16", head_format="bfloat16", kv_dtype=kv_dtype, max_context=512
    )
    return replace(program, weights={})  # what they cost is told above


def moved_bytes(program, *, num_requests: int, context: int) -> float:
    rows = {"num_rows": num_requests, "num_logit_rows": 0, "num_requests": num_requests}
    program = replace(program, calls=())
    return floor_of(program, MEASURED, **rows, context=context).bytes


def test_states_are_read_and_written_once_a_step_however_long_the_text_is():
    program = of_golden("mamba2", "bfloat16")
    layer = program.state_layers[0]
    width, taps = layer.num_heads * layer.head_dim, layer.conv_size - 1
    state = 4 * (width * layer.state_size + taps * layer.conv_width)

    assert moved_bytes(program, num_requests=3, context=10) == 2 * 3 * state * program.num_layers
    assert moved_bytes(program, num_requests=3, context=400) == moved_bytes(
        program, num_requests=3, context=1
    )


def test_keys_and_values_count_as_their_codec_keeps_them():
    exact, coded = (
        moved_bytes(of_golden("llama2", name), num_requests=1, context=100) for name in ("bfloat16", "int8")
    )

    assert 0.5 < coded / exact < 0.6  # and the scales
