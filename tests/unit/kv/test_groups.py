"""Bytes of a block, and the split of memory among KV groups."""

import pytest
from tests.fakes.model import STATE, specs_of

from penstock.errors import OutOfMemoryError
from penstock.kv.groups import (
    CHECKPOINTS_PER_REQUEST,
    KVGroup,
    checkpoint_blocks,
    make_groups,
    most_requests,
    split_blocks,
    total_bytes,
)
from penstock.kv.retention import RETENTIONS
from penstock.model.spec import KVGroupSpec


def groups_of(*windows, bytes_per_block=100):
    return make_groups(specs_of(windows), [bytes_per_block] * len(windows))


def test_a_block_costs_what_it_takes_in_every_layer_of_the_group():
    specs = [KVGroupSpec((0, 2), None), KVGroupSpec((1,), 16), KVGroupSpec((3,), None, is_state=True)]
    full, near, state = make_groups(specs, [10, 20, 30, 40])

    assert full == KVGroup((0, 2), None, "full", 40)
    assert near == KVGroup((1,), 16, "window", 20)
    assert state == KVGroup((3,), None, "state", 40)


@pytest.mark.parametrize("block_size", [1, 2, 4])
@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, 8, 9])
@pytest.mark.parametrize("step_tokens", [1, 2, 3, 7])
def test_peak_is_never_less_than_what_a_window_really_holds(window, block_size, step_tokens):
    num_tokens = 30
    most = 0
    held_from = 0
    for start in range(0, num_tokens, step_tokens):
        end = min(num_tokens, start + step_tokens)
        most = max(most, -(-end // block_size) - held_from)
        full = end // block_size
        held_from = max(held_from, min((full * block_size - window + 1) // block_size, full - 1))
    rule = RETENTIONS["window"](window)
    peak = rule.peak_blocks(num_tokens, step_tokens=step_tokens, block_size=block_size)

    assert most <= peak
    if step_tokens == 1:
        assert peak == most


def test_a_group_without_a_window_holds_everything():
    assert RETENTIONS["full"](None).peak_blocks(129, step_tokens=1, block_size=64) == 3


def test_a_state_is_read_in_one_block_and_written_in_another_however_long_the_text():
    state = RETENTIONS["state"](None)

    assert [state.peak_blocks(n, step_tokens=512, block_size=64) for n in (1, 64, 65, 10**6)] == [1, 1, 2, 2]


def test_checkpoints_are_the_rarer_the_larger_the_state_is():
    assert checkpoint_blocks(groups_of(None, 64, bytes_per_block=10**9), 64) == 1
    assert checkpoint_blocks(groups_of(STATE, bytes_per_block=10**6), 64) == 1
    assert checkpoint_blocks(groups_of(None, STATE, bytes_per_block=48 << 20), 64) == 12


def test_checkpoints_are_the_first_that_memory_is_too_small_for():
    options = {"max_context": 6_400, "max_requests": 3, "max_step_tokens": 64, "block_size": 64}

    assert split_blocks(groups_of(STATE), memory_bytes=10**9, **options) == (
        1 + 3 * (2 + CHECKPOINTS_PER_REQUEST),
    )
    assert split_blocks(groups_of(STATE), memory_bytes=300, **options) == (3,)
    with pytest.raises(OutOfMemoryError, match="states of one request of 6,400 tokens take 300 bytes"):
        split_blocks(groups_of(STATE), memory_bytes=299, **options)


def test_states_of_short_requests_need_no_room_for_long_ones():
    split = split_blocks(
        groups_of(STATE), memory_bytes=10**9, max_context=64, max_requests=1, max_step_tokens=1, block_size=64
    )

    assert split == (1 + 2,)


def test_all_groups_run_out_at_the_same_number_of_requests():
    groups = groups_of(None, 64)
    split = split_blocks(
        groups,
        memory_bytes=100_000,
        max_context=640,
        max_requests=1_000,
        max_step_tokens=64,
        block_size=64,
    )
    needs = [g.rule().peak_blocks(640, step_tokens=64, block_size=64) for g in groups]
    requests = [(n - 1) / need for n, need in zip(split, needs, strict=True)]

    assert total_bytes(groups, split) <= 100_000
    assert total_bytes(groups, split) > 100_000 - 100 * sum(needs)
    assert abs(requests[0] - requests[1]) < 1


def test_no_more_is_reserved_than_all_requests_need():
    split = split_blocks(
        groups_of(None),
        memory_bytes=10**9,
        max_context=100,
        max_requests=3,
        max_step_tokens=64,
        block_size=64,
    )

    assert split == (1 + 3 * 2,)


def test_exactly_one_request_fits_or_the_numbers_are_told():
    options = {"max_context": 128, "max_requests": 4, "max_step_tokens": 64, "block_size": 64}

    assert split_blocks(groups_of(None), memory_bytes=300, **options) == (3,)
    with pytest.raises(OutOfMemoryError, match="128 tokens take 300 bytes; 299 are planned"):
        split_blocks(groups_of(None), memory_bytes=299, **options)


def test_as_many_requests_are_held_as_the_tightest_group_holds():
    options = {"num_tokens": 100, "block_size": 10}

    assert most_requests(specs_of((None, 20)), (41, 41), **options) == 4
    assert most_requests(specs_of((None, 20)), (401, 7), **options) == 2
    assert most_requests(specs_of((STATE,)), (9,), **options) == 4
