"""Any request, in any company and under any circumstances, gives the bytes that it gives alone.

Alone: one thread, the whole prompt in one step, nothing cached. A failure names the seeds that repeat it.
"""

from dataclasses import replace
from itertools import product

import msgspec
import pytest
from tests.exactness.compare import differences
from tests.exactness.conftest import FAMILY_MODELS, MODELS
from tests.exactness.drive import Run, run_alone, run_mix
from tests.exactness.mixes import (
    BATCH_SIZES,
    STEP_TOKENS,
    Ask,
    Circumstances,
    make_circumstances,
    make_mix,
)

from penstock.request import SamplingParams

SLOW_MIXES = range(100, 120)  # for each model


def check(engines, model, seed, *, num_asks, num_long, all_circumstances, longest=700) -> list[Run]:
    loaded = engines(model)
    vocab_size = loaded[1].spec.vocab_size
    mix = make_mix(seed, vocab_size=vocab_size, num_asks=num_asks, num_long=num_long, longest=longest)
    return check_mix(loaded, mix, all_circumstances, name=f"{model}, mix {seed}")


def check_mix(loaded, mix, all_circumstances, *, name) -> list[Run]:
    alone = run_alone(loaded[1], mix)
    runs = []
    for circumstances in all_circumstances:
        run = run_mix(loaded, mix, circumstances)
        different = differences(alone, run.outcomes)

        assert not different, f"{name}, {circumstances}:\n" + "\n".join(different)
        runs.append(run)
    return runs


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("seed", range(3))
def test_a_request_in_any_mix_gives_the_bytes_it_gives_alone(engines, model, seed):
    all_circumstances = [make_circumstances(2 * seed), make_circumstances(2 * seed + 1)]
    num_asks, num_long = ((4, 1), (6, 0), (10, 0))[seed]
    check(engines, model, seed, num_asks=num_asks, num_long=num_long, all_circumstances=all_circumstances)


@pytest.mark.parametrize("model", FAMILY_MODELS)
def test_every_family_gives_in_a_mix_the_bytes_it_gives_alone(engines, model):
    """Batches, chunks, prefix hits, preemption and threads at once; the slow tests take them one by one."""
    busy = Circumstances(seed=1, max_requests=6, max_step_tokens=64, preempt_chance=0.3, arrives_apart=True)
    hit = replace(busy, seed=2, threads=2, prefix_cache=True, is_warm=True, starts_dirty=True)
    cached = replace(hit, max_step_tokens=129, preempt_chance=0.0)
    asks = {"num_asks": 3, "num_long": 0, "longest": 300}
    runs = check(engines, model, 41, **asks, all_circumstances=[busy, cached])

    assert runs[0].num_preemptions > 0
    assert runs[1].num_cached_tokens > 0


@pytest.mark.slow
@pytest.mark.parametrize("model", [*MODELS, *FAMILY_MODELS])
def test_a_request_in_hundreds_of_mixes_gives_the_bytes_it_gives_alone(engines, model):
    runs = []
    for seed in SLOW_MIXES:
        num_asks, longest = ((2, 700), (6, 700), (12, 500), (24, 200), (64, 20))[seed % 5]
        all_circumstances = [make_circumstances(2 * seed), make_circumstances(2 * seed + 1)]
        if num_asks == 64:  # at least once all together
            crowd = replace(all_circumstances[1], max_requests=64, is_short_of_blocks=False)
            all_circumstances[1] = replace(crowd, max_step_tokens=512, arrives_apart=False)
        runs += check(
            engines,
            model,
            seed,
            num_asks=num_asks,
            longest=longest,
            num_long=seed % 2,
            all_circumstances=all_circumstances,
        )

    assert sum(run.num_preemptions for run in runs) > 100
    assert sum(run.num_cached_tokens for run in runs) > 5_000
    assert sum(outcome is None for run in runs for outcome in run.outcomes) > 2
    assert max(run.largest_batch for run in runs) >= 33


@pytest.mark.parametrize("model", MODELS)
def test_a_prefix_hit_changes_nothing(engines, model):
    roomy = Circumstances(max_requests=4, max_step_tokens=129, prefix_cache=True, is_warm=True)
    tight = replace(roomy, threads=2, is_short_of_blocks=True, starts_dirty=True)
    runs = check(engines, model, 31, num_asks=6, num_long=1, all_circumstances=[roomy, tight])

    assert runs[0].num_cached_tokens > 1_000
    assert runs[1].num_cached_tokens > 0


@pytest.mark.parametrize("model", MODELS)
def test_preemption_changes_nothing(engines, model):
    forced = Circumstances(seed=1, max_requests=6, max_step_tokens=64, preempt_chance=0.5)
    circumstances = [forced, replace(forced, seed=2, prefix_cache=True, reset_chance=0.3, starts_dirty=True)]
    runs = check(engines, model, 32, num_asks=6, num_long=0, all_circumstances=circumstances)

    assert all(run.num_preemptions > 5 for run in runs)


def short_calls(count):
    """Calls that all decode at once for a while, every second one drawing at temperature 1."""
    greedy = SamplingParams(temperature=0.0, max_tokens=4, seed=0, ignore_eos=True)
    return [
        Ask((index + 3, 7, index % 5), msgspec.structs.replace(greedy, temperature=index % 2, seed=index))
        for index in range(count)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("model", FAMILY_MODELS)
@pytest.mark.parametrize("seed", range(3))
def test_a_request_of_every_family_in_any_mix_gives_the_bytes_it_gives_alone(engines, model, seed):
    test_a_request_in_any_mix_gives_the_bytes_it_gives_alone(engines, model, seed)


@pytest.mark.slow
@pytest.mark.parametrize("model", FAMILY_MODELS)
def test_in_every_family_prefix_hits_preemption_and_crowds_change_nothing(engines, model):
    test_a_prefix_hit_changes_nothing(engines, model)
    test_preemption_changes_nothing(engines, model)
    test_a_batch_of_64_gives_what_its_requests_give_alone(engines, model)


@pytest.mark.parametrize("model", MODELS)
def test_a_batch_of_64_gives_what_its_requests_give_alone(engines, model):
    (run,) = check_mix(engines(model), short_calls(64), [Circumstances(threads=2)], name=model)

    assert run.largest_batch == 64


@pytest.mark.slow
@pytest.mark.parametrize("model", [*MODELS, *FAMILY_MODELS])
def test_every_batch_size_gives_what_its_requests_give_alone(engines, model):
    circumstances = [Circumstances(max_requests=size) for size in range(1, 65)]
    runs = check_mix(engines(model), short_calls(64), circumstances, name=model)

    assert [run.largest_batch for run in runs] == list(range(1, 65))


@pytest.mark.parametrize("model", ["bfloat16", "int4_g64"])
@pytest.mark.parametrize("max_step_tokens", [1, 7, 64, 129, 512])
def test_every_chunk_size_gives_the_same_bytes(engines, model, max_step_tokens):
    circumstances = Circumstances(max_requests=1, max_step_tokens=max_step_tokens, starts_dirty=True)
    (run,) = check(engines, model, 33, num_asks=2, num_long=1, all_circumstances=[circumstances])

    assert run.num_steps > 1_101 // max_step_tokens


def test_the_random_circumstances_take_every_value():
    many = [make_circumstances(seed) for seed in range(300)]
    caches = (False, False), (True, False), (True, True)

    assert {c.max_requests for c in many} == set(BATCH_SIZES)
    assert {c.max_step_tokens for c in many} == set(STEP_TOKENS)
    assert {((c.prefix_cache, c.is_warm), c.threads) for c in many} == set(product(caches, (1, 2)))
