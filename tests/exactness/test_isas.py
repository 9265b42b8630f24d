"""Every set of kernels that this machine runs: exact within itself, and of the same bits as the others.

Within an ISA it is the promise. Across them it follows from the three arithmetic contracts, none of which
leaves a sum's order to the kernel, and from vector functions that are the same sequence of operations.
"""

import pytest
from tests.exactness.compare import differences
from tests.exactness.conftest import MODELS
from tests.exactness.drive import run_alone, run_mix
from tests.exactness.mixes import Circumstances, make_mix

native = pytest.importorskip("penstock._native", reason="this build has no native backend")

BUSY = Circumstances(
    threads=2,
    max_requests=5,
    max_step_tokens=64,
    prefix_cache=True,
    arrives_apart=True,
    preempt_chance=0.2,
    starts_dirty=True,
)


def small_mix(loaded, *, num_asks=5, longest=70, num_long=0, seed=41):
    return make_mix(
        seed, vocab_size=loaded.spec.vocab_size, num_asks=num_asks, longest=longest, num_long=num_long
    )


@pytest.mark.parametrize("isa", [isa for isa in native.isas() if isa not in ("scalar", native.best_isa())])
@pytest.mark.parametrize("model", MODELS)
def test_every_isa_gives_the_bytes_of_a_request_alone_on_the_best(engines, model, isa):
    best = engines(model)[1]
    mix = small_mix(best, num_asks=6, longest=300)
    run = run_mix(engines(model, isa), mix, BUSY)

    assert differences(run_alone(best, mix), run.outcomes) == []


@pytest.mark.parametrize("model", ["float32", "bfloat16", "int8", "int4_g64"])
def test_the_scalar_kernels_give_the_same_bytes(engines, model):
    best = engines(model)[1]
    mix = small_mix(best, num_asks=3, longest=20, seed=44)
    run = run_mix(engines(model, "scalar"), mix, BUSY)

    assert differences(run_alone(best, mix), run.outcomes) == []


@pytest.mark.slow
@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("model", MODELS)
def test_long_prompts_give_the_same_bytes_on_every_isa(engines, model, isa):
    best = engines(model)[1]
    is_scalar = isa == "scalar"
    mix = small_mix(best, num_asks=4 if is_scalar else 12, longest=300, num_long=int(not is_scalar))
    run = run_mix(engines(model, isa), mix, BUSY)

    assert differences(run_alone(best, mix), run.outcomes) == []


@pytest.mark.slow
def test_the_scalar_kernels_cross_partitions_as_the_others_do(engines):
    best = engines("int8")[1]
    mix = small_mix(best, num_asks=1, num_long=1)
    run = run_mix(engines("int8", "scalar"), mix, BUSY)

    assert differences(run_alone(best, mix), run.outcomes) == []
