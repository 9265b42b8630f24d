"""KVManager: tables, hits, sharing, what a window lets go, and that a refusal changes nothing."""

import pytest
from tests.fakes.model import STATE, make_kv, make_request

from penstock.errors import EngineError


def compute(kv, request, num_tokens=None, hit=None):
    """Allocate, count as computed, commit: one step of one request."""
    if num_tokens is None:
        num_tokens = len(request.tokens) - (hit.num_tokens if hit else request.num_computed_tokens)
    assert kv.allocate(request, num_tokens, hit)
    if hit is not None:
        request.num_computed_tokens = hit.num_tokens
    request.num_computed_tokens += num_tokens
    kv.commit(request)
    kv.check_integrity()


def admit(kv, request, num_tokens=None):
    hit = kv.find_prefix(request)
    compute(kv, request, num_tokens, hit)
    return hit


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)])
def test_a_table_has_one_block_for_every_block_size_tokens_begun(num_tokens, num_blocks):
    kv = make_kv(block_size=2)
    request = make_request("a", range(10))

    assert kv.allocate(request, num_tokens)
    assert len(kv.block_ids(request)[0]) == num_blocks
    assert kv.num_free_blocks == (8 - num_blocks,)


def test_asking_for_the_same_again_changes_nothing():
    kv = make_kv()
    request = make_request("a", range(3))
    kv.allocate(request, 3)
    before = kv.block_ids(request)

    assert kv.allocate(request, 3)
    assert kv.block_ids(request) is before


def test_the_table_is_the_same_object_until_it_grows():
    kv = make_kv(block_size=2)
    request = make_request("a", range(3))
    compute(kv, request)
    before = kv.block_ids(request)
    request.append(7)
    compute(kv, request)
    assert kv.block_ids(request) is before
    request.append(8)
    compute(kv, request)

    assert kv.block_ids(request)[0][:2] == before[0]
    assert len(kv.block_ids(request)[0]) == 3


def test_running_out_is_refused_and_changes_nothing():
    kv = make_kv(num_blocks=3, block_size=2)
    request, other = make_request("a", range(4)), make_request("b", range(5, 9))
    compute(kv, request)

    assert not kv.allocate(other, 4)
    assert kv.num_free_blocks == (1,)
    kv.check_integrity()
    assert kv.allocate(other, 2)


def test_a_freed_request_gives_everything_back_and_may_be_freed_again():
    kv = make_kv()
    request = make_request("a", range(5))
    compute(kv, request)
    kv.free(request)
    kv.free(request)

    assert kv.num_free_blocks == (8,)
    kv.check_integrity()


def test_a_beginning_is_shared_by_whole_blocks_and_never_with_its_last_token():
    kv = make_kv(block_size=2)
    first = make_request("a", [1, 2, 3, 4, 5])
    compute(kv, first)

    def hit_of(*prompt, **options):
        request = make_request(f"{prompt} {options}", prompt, **options)
        return kv.find_prefix(request).num_tokens

    assert hit_of(1, 2, 3, 4, 5) == 4
    assert hit_of(1, 2, 3, 4) == 2  # the last token is always computed
    assert hit_of(1, 2, 3) == 2
    assert hit_of(1, 2) == 0
    assert hit_of(1, 2, 9, 4, 5) == 2
    assert hit_of(9, 2, 3, 4, 5) == 0
    assert hit_of(1, 2, 3, 4, 5, salt="other") == 0


def test_generated_tokens_are_found_by_the_next_turn_of_a_conversation():
    kv = make_kv(block_size=2)
    first = make_request("a", [1, 2, 3])
    compute(kv, first)
    for token in (4, 5):
        first.append(token)
        compute(kv, first)
    kv.free(first)

    assert kv.find_prefix(make_request("b", [1, 2, 3, 4, 5, 6])).num_tokens == 4


def test_forks_read_the_same_blocks_and_write_their_own():
    kv = make_kv(block_size=2)
    one, other = make_request("a", [1, 2, 3]), make_request("b", [1, 2, 3])
    admit(kv, one)
    admit(kv, other)
    (ids_one,), (ids_other,) = kv.block_ids(one), kv.block_ids(other)

    assert ids_one[0] == ids_other[0]
    assert ids_one[1] != ids_other[1]
    assert kv.num_free_blocks == (5,)


def test_a_cached_block_outlives_its_request_until_blocks_are_needed():
    kv = make_kv(num_blocks=3, block_size=2)
    first = make_request("a", [1, 2, 3, 4])
    compute(kv, first)
    kv.free(first)
    again = make_request("b", [1, 2, 3, 4, 5])
    assert kv.find_prefix(again).num_tokens == 4

    other = make_request("c", [7, 8, 9])
    compute(kv, other)
    assert kv.find_prefix(again).num_tokens == 2  # the last block of a chain is evicted first
    kv.check_integrity()


def test_two_that_compute_the_same_block_each_keep_their_own():
    kv = make_kv(block_size=2)
    one, other = make_request("a", [1, 2, 3]), make_request("b", [1, 2, 3])
    for request in (one, other):
        assert kv.allocate(request, 3)
    for request in (one, other):
        request.num_computed_tokens = 3
        kv.commit(request)
    kv.check_integrity()

    assert not set(kv.block_ids(one)[0]) & set(kv.block_ids(other)[0])
    kv.free(other)
    kv.free(one)
    assert kv.num_free_blocks == (8,)
    kv.check_integrity()


def test_a_block_that_is_being_computed_is_better_waited_for():
    kv = make_kv(block_size=2)
    one, other = make_request("a", [1, 2, 3, 4, 5]), make_request("b", [1, 2, 3, 4, 6])
    stranger = make_request("c", [1, 3, 3, 4, 6])
    assert kv.allocate(one, 2)

    assert kv.find_prefix(other).is_growing
    assert not kv.find_prefix(stranger).is_growing
    one.num_computed_tokens = 2
    kv.commit(one)
    assert not kv.find_prefix(other).is_growing
    assert kv.find_prefix(other).num_tokens == 2
    assert kv.allocate(one, 3)
    assert kv.find_prefix(other).is_growing
    one.num_computed_tokens = 5
    kv.commit(one)
    kv.reset_prefix_cache()
    assert not kv.find_prefix(other).is_growing  # computed, not growing, though nobody finds it any more
    kv.free(one)
    kv.check_integrity()


def test_who_is_freed_computes_nothing_any_more():
    kv = make_kv(block_size=2)
    one, other = make_request("a", [1, 2, 3, 4, 5]), make_request("b", [1, 2, 3, 4, 6])
    assert kv.allocate(one, 4)
    assert kv.find_prefix(other).is_growing
    kv.free(one)

    assert not kv.find_prefix(other).is_growing
    kv.check_integrity()


def test_a_request_that_ends_with_the_growing_block_does_not_wait_for_it():
    kv = make_kv(block_size=2)
    one, other = make_request("a", [1, 2, 3, 4, 5]), make_request("b", [1, 2])
    assert kv.allocate(one, 4)

    assert not kv.find_prefix(other).is_growing


def test_prompt_rows_that_owe_logprobs_are_computed():
    kv = make_kv(block_size=2)
    compute(kv, make_request("a", [1, 2, 3, 4, 5]))
    request = make_request("b", [1, 2, 3, 4, 5], prompt_logprobs=0)

    assert kv.find_prefix(request).num_tokens == 0
    request.num_scored_tokens = 3
    assert kv.find_prefix(request).num_tokens == 2
    request.num_scored_tokens = 4  # all of them
    assert kv.find_prefix(request).num_tokens == 4


def test_rows_that_were_scored_bind_nobody_after_a_preemption():
    kv = make_kv(block_size=2)
    request = make_request("a", [1, 2, 3], prompt_logprobs=0)
    compute(kv, request)
    request.num_scored_tokens = 2
    for token in (4, 5, 6):
        request.append(token)
        compute(kv, request)
    kv.free(request)

    assert kv.find_prefix(request).num_tokens == 4


def test_without_prefix_cache_nothing_is_shared_or_kept():
    kv = make_kv(block_size=2, prefix_cache=False)
    first = make_request("a", [1, 2, 3, 4, 5])
    compute(kv, first)
    hit = kv.find_prefix(make_request("b", [1, 2, 3, 4, 5]))

    assert (hit.num_tokens, hit.is_growing) == (0, False)


def test_another_cache_key_is_another_cache():
    kv = make_kv(block_size=2)
    compute(kv, make_request("a", [1, 2, 3]))
    kv._cache_key = "other codec"

    assert kv.find_prefix(make_request("b", [1, 2, 3])).num_tokens == 0


def test_reset_forgets_what_is_cached_and_leaves_running_requests_alone():
    kv = make_kv(num_blocks=4, block_size=2)
    running, ended = make_request("a", [1, 2, 3]), make_request("b", [4, 5, 6])
    compute(kv, running)
    compute(kv, ended)
    kv.free(ended)
    table = kv.block_ids(running)
    kv.reset_prefix_cache()
    kv.check_integrity()

    assert kv.block_ids(running) == table
    assert kv.find_prefix(make_request("c", [1, 2, 3])).num_tokens == 0
    assert kv.find_prefix(make_request("d", [4, 5, 6])).num_tokens == 0
    running.append(4)
    compute(kv, running)
    kv.free(running)
    assert kv.num_free_blocks == (4,)


def test_a_window_lets_go_what_it_has_passed():
    kv = make_kv(num_blocks=8, block_size=2, windows=(None, 3))
    request = make_request("a", range(6))
    assert kv.allocate(request, 6)
    assert 0 not in kv.block_ids(request)[1]
    compute(kv, request)
    full, near = kv.block_ids(request)

    assert 0 not in full
    assert near[:2] == (0, 0)  # the row at 6 reads 4, 5 and itself
    assert near[2] != 0
    assert kv.num_free_blocks == (5, 7)


def test_what_a_window_let_go_stays_cached_for_others():
    kv = make_kv(num_blocks=8, block_size=2, windows=(None, 3))
    compute(kv, make_request("a", range(6)))

    hit = kv.find_prefix(make_request("b", range(5)))
    assert hit.num_tokens == 4
    assert hit.block_ids[1][0] == 0  # the row at 4 reads 2, 3 and itself: block 0 is not needed
    assert hit.block_ids[1][1] != 0


def test_a_hit_needs_only_what_the_window_still_reads():
    kv = make_kv(num_blocks=8, block_size=2, windows=(None, 3))
    first = make_request("a", range(8))
    compute(kv, first)
    near = kv._groups[1]
    for place in (0, 1):  # evicted, in the window's group alone
        block = near.index.find(kv._links["a"][place])
        near.index.remove(block)
        near.pool.uncache(block)

    assert kv.find_prefix(make_request("b", range(7))).num_tokens == 6
    assert kv.find_prefix(make_request("c", range(5))).num_tokens == 0


def test_a_hole_in_the_window_shortens_the_hit():
    kv = make_kv(num_blocks=8, block_size=2, windows=(None, 4))
    first = make_request("a", range(9))
    compute(kv, first)
    near = kv._groups[1]
    block = near.index.find(kv._links["a"][3])
    near.index.remove(block)
    near.pool.uncache(block)

    hit = kv.find_prefix(make_request("b", range(9)))
    assert hit.num_tokens == 6
    assert [b != 0 for b in hit.block_ids[1]] == [False, True, True]


def test_a_window_alone_needs_no_other_group():
    kv = make_kv(num_blocks=3, block_size=2, windows=(3,))
    request = make_request("a", range(2))
    compute(kv, request)
    for token in range(40):
        request.append(token)
        compute(kv, request)

    assert kv.fits_ever(10**9)
    assert sum(1 for b in kv.block_ids(request)[0] if b) <= 2


def test_fits_ever_is_exact():
    assert make_kv(num_blocks=4, block_size=2).fits_ever(8)
    assert not make_kv(num_blocks=4, block_size=2).fits_ever(9)
    assert not make_kv(num_blocks=1, block_size=2, windows=(3,)).fits_ever(3)
    assert make_kv(num_blocks=2, block_size=2, windows=(3,)).fits_ever(30)
    assert make_kv(num_blocks=4, block_size=2).capacity_tokens == 8


def test_max_new_tokens_is_exactly_what_allocate_grants():
    for num_blocks in range(1, 6):
        kv = make_kv(num_blocks=num_blocks, block_size=2)
        request = make_request("a", range(20))
        assert kv.allocate(request, 1)
        request.num_computed_tokens = 1
        most = kv.max_new_tokens(request, kv.no_hit)

        assert not kv.allocate(request, most + 1)
        assert kv.allocate(request, most)


def test_max_new_tokens_does_not_count_the_hit_blocks_twice():
    kv = make_kv(num_blocks=3, block_size=2)
    first = make_request("a", [1, 2, 3, 4])
    compute(kv, first)
    kv.free(first)
    again = make_request("b", [1, 2, 3, 4, 5, 6, 7])
    hit = kv.find_prefix(again)

    assert hit.num_tokens == 4
    assert kv.max_new_tokens(again, hit) == 2
    assert not kv.allocate(again, 3, hit)
    assert kv.find_prefix(again) == hit  # nothing was evicted for nothing
    assert kv.allocate(again, 2, hit)


def test_a_refusal_evicts_nobody():
    kv = make_kv(num_blocks=4, block_size=2)
    for name, prompt in (("a", [1, 2, 3, 4]), ("c", [7, 8])):
        request = make_request(name, prompt)
        compute(kv, request)
        kv.free(request)
    again = make_request("b", [1, 2, 3, 4, 5, 6, 7, 8, 9])
    hit = kv.find_prefix(again)

    assert hit.num_tokens == 4
    assert not kv.allocate(again, 5, hit)
    assert kv.find_prefix(make_request("d", [7, 8, 9])).num_tokens == 2


def test_room_is_kept_for_those_who_still_read_their_prompt():
    kv = make_kv(num_blocks=6, block_size=2)
    reading = make_request("a", range(9))
    compute(kv, reading, 2)  # holds 1 block, will need 5
    small, large = make_request("b", [90]), make_request("c", [91, 92])

    assert kv.has_room(small, kv.no_hit, [reading])
    assert not kv.has_room(large, kv.no_hit, [reading])
    assert kv.has_room(large, kv.no_hit, [])


def test_cached_blocks_of_the_hit_are_not_free_for_the_rest():
    kv = make_kv(num_blocks=4, block_size=2)
    first, other = make_request("a", [1, 2, 3, 4]), make_request("c", [9], max_tokens=1)
    compute(kv, first)
    kv.free(first)
    compute(kv, other)
    again = make_request("b", [1, 2, 3, 4, 5, 6, 7], max_tokens=1)
    hit = kv.find_prefix(again)

    assert (hit.num_tokens, kv.num_free_blocks) == (4, (3,))
    assert not kv.has_room(again, hit, [other])
    assert kv.has_room(make_request("d", [1, 2, 3, 4, 5, 6], max_tokens=1), hit, [other])


def test_integrity_finds_a_lost_reference_and_foreign_content():
    kv = make_kv(block_size=2)
    one, other = make_request("a", [1, 2, 3]), make_request("b", [1, 2, 3])
    admit(kv, one)
    admit(kv, other)
    shared = kv.block_ids(one)[0][0]
    kv._groups[0].pool.release(shared)
    with pytest.raises(EngineError, match=f"block {shared} counts 1 users; 2 tables hold it"):
        kv.check_integrity()
    kv._groups[0].pool.share(shared)
    kv.check_integrity()

    own = kv.block_ids(one)[0][1]
    kv._groups[0].pool.cache(own)
    with pytest.raises(EngineError, match="in the pool or in the index, not in both"):
        kv.check_integrity()
    kv._groups[0].index.publish(kv._linker.link(None, (8, 8), salt="", extra=""), own)
    with pytest.raises(EngineError, match=f"still writes block {own}"):
        kv.check_integrity()
    kv._groups[0].index.remove(own)
    kv._groups[0].pool.uncache(own)
    kv._links["b"] = [kv._linker.link(None, (1, 9), salt="", extra="")]
    with pytest.raises(EngineError, match="holds other tokens"):
        kv.check_integrity()


def states_of(kv, request, group=0):
    """Places of the request that have a block."""
    return [place for place, block_id in enumerate(kv.block_ids(request)[group]) if block_id]


def test_a_request_holds_one_state_however_long_it_is():
    kv = make_kv(num_blocks=2, block_size=2, windows=(STATE,))
    request = make_request("a", range(3))
    compute(kv, request)
    for token in range(40):
        request.append(token)
        compute(kv, request)
        assert states_of(kv, request) == [len(request.tokens) // 2 - (len(request.tokens) % 2 == 0)]

    assert kv.fits_ever(10**9)
    assert not make_kv(num_blocks=1, block_size=2, windows=(STATE,)).fits_ever(3)


def test_a_step_makes_checkpoints_at_every_so_many_blocks_and_where_the_prompt_ends():
    kv = make_kv(num_blocks=9, block_size=2, windows=(STATE,), checkpoint_blocks=3)
    request = make_request("a", range(17))
    assert kv.allocate(request, 17)

    assert states_of(kv, request) == [2, 5, 7, 8]  # after 6, 12, 16 tokens; and the live one
    compute(kv, request)
    assert states_of(kv, request) == [8]
    assert kv.num_free_blocks == (8,)

    def hit_of(num_tokens):
        hit = kv.find_prefix(make_request(str(num_tokens), range(num_tokens)))
        assert [place for place, block_id in enumerate(hit.block_ids[0]) if block_id] == [
            place for place in [hit.num_tokens // 2 - 1] if place >= 0
        ]
        return hit.num_tokens

    assert [hit_of(n) for n in (6, 7, 12, 13, 16, 17, 30)] == [0, 6, 6, 12, 12, 16, 16]


def test_who_goes_on_from_a_checkpoint_writes_a_block_of_its_own():
    kv = make_kv(num_blocks=6, block_size=2, windows=(STATE,))
    one, other = make_request("a", [1, 2, 3]), make_request("b", [1, 2, 3])
    compute(kv, one)
    hit = kv.find_prefix(other)
    assert hit.num_tokens == 2
    assert kv.allocate(other, 1, hit)

    assert kv.block_ids(other)[0][0] == hit.block_ids[0][0]
    assert kv.block_ids(other)[0][1] not in (0, kv.block_ids(one)[0][1])
    other.num_computed_tokens = 3
    kv.commit(other)
    kv.check_integrity()
    assert states_of(kv, other) == [1]
    assert kv.find_prefix(make_request("c", [1, 2, 3])).num_tokens == 2


def test_checkpoints_leave_every_running_request_its_next_block():
    kv = make_kv(num_blocks=4, block_size=2, windows=(STATE,))
    others = [make_request(name, [token]) for name, token in (("a", 7), ("b", 8))]
    for request in others:
        compute(kv, request)
    reading = make_request("c", range(9))

    assert kv.max_new_tokens(reading, kv.no_hit) > 9
    assert kv.allocate(reading, 9)
    assert states_of(kv, reading) == [4]
    reading.num_computed_tokens = 9
    kv.commit(reading)
    assert kv.num_free_blocks == (1,)


def test_the_least_recently_used_checkpoint_is_evicted_first():
    kv = make_kv(num_blocks=3, block_size=2, windows=(STATE,))
    for name, token in (("a", 1), ("b", 5)):
        request = make_request(name, [token, 2, 3])
        compute(kv, request)
        kv.free(request)
    assert kv.find_prefix(make_request("c", [1, 2, 3])).num_tokens == 2
    third = make_request("d", [7, 8, 9])
    compute(kv, third)

    assert kv.find_prefix(make_request("e", [1, 2, 3])).num_tokens == 0
    assert kv.find_prefix(make_request("f", [5, 2, 3])).num_tokens == 2


def test_without_room_for_a_state_a_request_goes_on_to_the_end_of_its_block():
    kv = make_kv(num_blocks=2, block_size=4, windows=(STATE,))
    one, other = make_request("a", range(9)), make_request("b", [9])
    compute(kv, one, 2)
    compute(kv, other)

    assert kv.max_new_tokens(one, kv.no_hit) == 2
    assert not kv.allocate(one, 3)
    assert kv.allocate(one, 2)


def test_a_hit_of_keys_and_states_ends_where_both_are_found():
    kv = make_kv(num_blocks=12, block_size=2, windows=(None, STATE), checkpoint_blocks=2)
    compute(kv, make_request("a", range(11)))
    again = make_request("b", [*range(11), 11, 12])
    hit = kv.find_prefix(again)

    assert hit.num_tokens == 10
    assert [b != 0 for b in hit.block_ids[0]] == [True] * 5
    assert [b != 0 for b in hit.block_ids[1]] == [False] * 4 + [True]
    assert kv.find_prefix(make_request("c", range(10))).num_tokens == 8
    compute(kv, again, 3, hit)


def test_without_prefix_cache_no_checkpoint_is_made():
    kv = make_kv(num_blocks=8, block_size=2, windows=(STATE,), prefix_cache=False)
    request = make_request("a", range(9))
    assert kv.allocate(request, 9)

    assert states_of(kv, request) == [4]


def test_the_checkpoint_at_a_prompts_end_is_where_the_same_prompt_goes_on():
    kv = make_kv(num_blocks=9, block_size=2, windows=(STATE,), checkpoint_blocks=100)
    compute(kv, make_request("a", range(16)))

    assert kv.find_prefix(make_request("b", range(16))).num_tokens == 14


def test_a_state_that_a_step_happens_to_end_with_is_no_checkpoint():
    kv = make_kv(num_blocks=9, block_size=2, windows=(STATE,), checkpoint_blocks=3)
    request = make_request("a", range(40))
    for _ in range(4):
        compute(kv, request, 2)

    assert [kv.find_prefix(make_request(str(n), range(n))).num_tokens for n in (5, 7, 9)] == [0, 6, 6]
