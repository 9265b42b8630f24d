"""The n-th allocation fails, n = 1, 2, ... until none is left to fail: no block is lost, no token changes."""

import itertools

import pytest
from tests.fakes.model import (
    FakeModel,
    expected_tokens,
    make_kv,
    make_request,
    make_scheduler,
    run_step,
)

from penstock.errors import EngineError

PROMPTS = ([1, 2, 3, 4, 0], [1, 2, 3, 4, 1], [3], [2, 2, 2])


class FailingPool:
    """Stands before a pool's `take`; counts over all groups."""

    def __init__(self, counter, at, fail, take):
        self._counter, self._at, self._fail, self._take = counter, at, fail, take

    def __call__(self, tenant):
        if next(self._counter) == self._at:
            return self._fail()
        return self._take(tenant)


def raise_memory_error():
    raise MemoryError("injected")


def raise_interrupt():
    raise KeyboardInterrupt


FAILURES = {"none": lambda: None, "memory error": raise_memory_error, "interrupt": raise_interrupt}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("windows", [(None,), (None, 3), (2, None)])
@pytest.mark.parametrize("num_blocks", [6, 30])
def test_any_allocation_may_fail(failure, windows, num_blocks):
    want = {f"r{i}": expected_tokens(prompt, i, 6, windows=windows) for i, prompt in enumerate(PROMPTS)}
    for at in itertools.count(1):
        counter = itertools.count(1)
        kv = make_kv(num_blocks=num_blocks, windows=windows)
        for group in kv._groups:
            group.pool.take = FailingPool(counter, at, FAILURES[failure], group.pool.take)
        scheduler, model = make_scheduler(kv, step_tokens=6), FakeModel(windows=windows)
        for i, prompt in enumerate(PROMPTS):
            scheduler.add(make_request(f"r{i}", prompt, max_tokens=6, arrival_s=i, seed=i))
        outputs = {name: [] for name in want}
        failures = 0
        while scheduler.requests:
            try:
                deltas = run_step(scheduler, model)
            except (MemoryError, KeyboardInterrupt, EngineError):
                failures += 1
                deltas = []
            kv.check_integrity()
            for delta in deltas or ():
                outputs[delta.request_id] += delta.tokens

        assert outputs == want
        assert failures <= 1
        assert kv.num_free_blocks == kv.num_usable_blocks
        if next(counter) <= at:
            break

    assert at > 10


@pytest.mark.parametrize("at", range(1, 7))
def test_a_failed_allocation_of_a_hit_takes_no_part_of_it(at):
    kv = make_kv(num_blocks=12, windows=(None, None))
    first = make_request("a", [1, 2, 3, 4, 5])
    assert kv.allocate(first, 5)
    first.num_computed_tokens = 5
    kv.commit(first)
    kv.free(first)
    request = make_request("b", [1, 2, 3, 4, 5, 6, 7, 8, 9])
    hit = kv.find_prefix(request)
    assert hit.num_tokens == 4
    free = kv.num_free_blocks
    counter = itertools.count(1)
    takes = [group.pool.take for group in kv._groups]
    for group in kv._groups:
        group.pool.take = FailingPool(counter, at, raise_memory_error, group.pool.take)
    with pytest.raises(MemoryError):
        kv.allocate(request, 5, hit)

    kv.check_integrity()
    assert kv.num_free_blocks == free
    assert kv.find_prefix(request) == hit
    for group, take in zip(kv._groups, takes, strict=True):
        group.pool.take = take
    assert kv.allocate(request, 5, hit)
    kv.check_integrity()


@pytest.mark.parametrize("at", range(1, 12))
def test_the_nth_hash_may_fail(at):
    kv = make_kv(num_blocks=30)
    scheduler, model = make_scheduler(kv), FakeModel()
    counter, link = itertools.count(1), kv._linker.link

    def failing(*args, **options):
        if next(counter) == at:
            raise MemoryError("injected")
        return link(*args, **options)

    kv._linker.link = failing
    requests = [
        make_request(f"r{i}", prompt, max_tokens=6, arrival_s=i, seed=i) for i, prompt in enumerate(PROMPTS)
    ]
    for request in requests:
        scheduler.add(request)
    while scheduler.requests:
        try:
            run_step(scheduler, model)
        except MemoryError:
            kv.check_integrity()

    for i, prompt in enumerate(PROMPTS):
        assert requests[i].output_tokens == expected_tokens(prompt, i, 6)
    assert kv.num_free_blocks == (30,)
