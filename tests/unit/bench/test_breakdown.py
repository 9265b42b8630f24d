"""The profile of a step: every op once, times that add up, and bits that do not notice."""

import numpy as np
import pytest

from penstock.backends.cpu.probe import Measured
from penstock.bench.breakdown import Shape, kernels_of, report
from penstock.bench.workload import Bench
from penstock.config import EngineConfig
from penstock.engine.build import load_model

MEASURED = Measured("avx512", 1, read_bytes_per_s=1e10, float32_flops_per_s=1e11, int8_ops_per_s=4e11)
LAYERS = 12  # of penstock-tiny


@pytest.fixture(scope="module")
def bench():
    return Bench(load_model("penstock-tiny", EngineConfig(weights="int4_g64", threads=2)))


def test_every_call_of_a_program_belongs_to_one_kernel(bench):
    program = bench.loaded.program
    kernels = kernels_of(program, Shape(3, 3, 3, 40), "avx512")
    places = sorted(place for kernel in kernels for place in kernel.calls)

    assert places == list(range(len(program.calls) + 1))
    assert {kernel.name for kernel in kernels} >= {"linear mlp.gate_up", "attention", "sample"}


def test_bytes_are_weights_and_cache_and_units_follow_the_contract(bench):
    kernels = {k.name: k for k in kernels_of(bench.loaded.program, Shape(2, 2, 2, 100), "avx512")}
    down, attention, norm = kernels["linear_add mlp.down"], kernels["attention"], kernels["norm_operand"]

    assert down.bytes == LAYERS * 256 * 768 * 4.25 / 8
    assert (down.unit, down.flops) == ("int8", pytest.approx(LAYERS * 2 * 2 * 256 * 768, rel=1e-3))
    assert attention.bytes == LAYERS * 2 * 100 * 2 * 2 * 64 * 2
    assert (norm.bytes, norm.flops, norm.unit) == (0, 0, "")
    assert down.floor_s(MEASURED) == down.bytes / 1e10
    on_tiles = {k.name: k.unit for k in kernels_of(bench.loaded.program, Shape(1, 1, 1, 9), "amx")}
    assert (on_tiles["linear_add mlp.down"], on_tiles["attention"]) == ("tile_int8", "bfloat16")


def test_times_of_ops_are_positive_and_own_time_is_within_the_whole(bench):
    ns = bench.profile_decode(4, 20, 8)

    assert ns.shape[0] >= 7
    assert ns.shape[1:] == (len(bench.loaded.program.calls) + 1, 2)
    assert (ns[:, :, 0] <= ns[:, :, 1]).all()
    assert (ns[:, :, 1] > 0).all()
    assert bench.profile_prefill(50).shape[0] == 1


def test_the_ring_keeps_the_last_steps_and_nothing_when_it_is_off(bench):
    executor = bench.loaded.executor
    executor.set_profiling(3)
    bench.prefill(5, 7)
    outputs, ns = executor.profile()
    executor.set_profiling(0)
    bench.prefill(5, 1)

    assert ns.shape == (3, len(outputs), 2)
    assert outputs[-2:] == ("logits", "sampled")
    assert executor.profile()[1].shape[0] == 0


def test_a_profile_changes_no_bit(bench):
    prompt = {"prompt_token_ids": list(range(5, 60))}
    from penstock import SamplingParams

    params = SamplingParams(max_tokens=12, temperature=1.0, seed=3, logprobs=2)
    plain = bench.llm.generate(prompt, params, use_tqdm=False)[0].outputs[0]
    bench.loaded.executor.set_profiling(100)
    profiled = bench.llm.generate(prompt, params, use_tqdm=False)[0].outputs[0]
    bench.loaded.executor.set_profiling(0)

    assert profiled.token_ids == plain.token_ids
    assert profiled.logprobs == plain.logprobs


def test_a_report_has_shares_of_the_step_and_of_the_floor():
    program = load_model("penstock-tiny", EngineConfig(weights="int4_g64", threads=1)).program
    kernels = kernels_of(program, Shape(1, 1, 1, 10), "avx512")
    ns = np.full((5, len(program.calls) + 1, 2), 1000)
    lines = report(kernels, ns, MEASURED)

    assert lines[-1].split()[:2] == ["whole", "step"]
    assert len(lines) == len(kernels) + 2
    shares = [float(line[47:53].strip(" %")) for line in lines[1:-1]]
    assert sum(shares) == pytest.approx(100, abs=0.6)
