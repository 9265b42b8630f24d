"""Scheduler: budgets, order, preemption, ends, and refusals."""

from unittest.mock import Mock

import msgspec
import pytest
from tests.fakes.model import (
    STATE,
    FakeModel,
    expected_tokens,
    make_kv,
    make_request,
    make_scheduler,
    run_step,
    run_to_end,
)

from penstock.errors import ConfigError, ContextLengthError, EngineError, InvalidRequestError
from penstock.scheduler.policy import POLICIES
from penstock.scheduler.scheduler import Scheduler, accept
from penstock.step import Drawn, Schedule, ScheduledRequest


def given(schedule):
    return {r.request_id: r.num_tokens for r in schedule.requests}


def step(scheduler, token=1):
    """One step in which every request that has caught up draws `token`."""
    schedule = scheduler.schedule(0.0)
    drawn = []
    for r in schedule.requests:
        is_due = r.start + r.num_tokens == len(scheduler.requests[r.request_id].tokens)
        drawn.append(Drawn((token,)) if is_due else Drawn())
    return schedule, scheduler.update(schedule, drawn)


def test_nothing_to_do_is_none():
    assert make_scheduler(make_kv()).schedule(0.0) is None


def test_a_long_prompt_is_read_in_chunks_beside_decoding_ones():
    scheduler = make_scheduler(make_kv(num_blocks=40), step_tokens=6)
    scheduler.add(make_request("short", [1, 2], arrival_s=1))
    step(scheduler)
    scheduler.add(make_request("long", range(12), arrival_s=2))

    assert given(step(scheduler)[0]) == {"short": 1, "long": 5}
    assert given(step(scheduler)[0]) == {"short": 1, "long": 5}
    schedule, deltas = step(scheduler)
    assert given(schedule) == {"short": 1, "long": 2}
    assert [d.request_id for d in deltas] == ["short", "long"]


def test_a_reading_prompt_leaves_every_later_request_its_token():
    scheduler = make_scheduler(make_kv(num_blocks=40), step_tokens=6)
    for name, length in (("long", 30), ("a", 1), ("b", 1)):
        scheduler.add(make_request(name, range(50, 50 + length), arrival_s=0))
    scheduler.add(make_request("first", range(7), arrival_s=-1))
    seen = [given(step(scheduler)[0]) for _ in range(4)]

    assert seen[0] == {"first": 6}
    assert seen[1] == {"first": 1, "a": 1, "b": 1, "long": 3}
    assert seen[2] == {"first": 1, "a": 1, "b": 1, "long": 3}


def test_never_more_requests_or_tokens_than_allowed():
    scheduler = make_scheduler(make_kv(num_blocks=100), step_tokens=5, requests=3)
    for i in range(7):
        scheduler.add(make_request(f"r{i}", [i, i, i], arrival_s=i))
    while scheduler.requests:
        schedule, _ = step(scheduler)

        assert schedule.num_tokens <= 5
        assert len(schedule.requests) <= 3
        assert scheduler.num_running <= 3


def test_a_step_too_small_for_all_requests_is_refused_at_start():
    with pytest.raises(ConfigError, match="max_step_tokens=3 is less than max_requests=4"):
        make_scheduler(make_kv(), step_tokens=3, requests=4)


def test_what_can_never_fit_is_refused_with_the_numbers():
    scheduler = make_scheduler(make_kv(num_blocks=4, block_size=2))
    scheduler.add(make_request("fits", range(5), max_tokens=4))
    with pytest.raises(ContextLengthError, match=r"prompt has 6 tokens and 4 more .*; the KV cache holds 8"):
        scheduler.add(make_request("too long", range(6), max_tokens=4))

    assert list(scheduler.requests) == ["fits"]
    assert run_to_end(scheduler, FakeModel()) == {"fits": expected_tokens(range(5), 0, 4)}


def test_an_id_in_use_is_refused():
    scheduler = make_scheduler(make_kv())
    scheduler.add(make_request("a", [1]))
    with pytest.raises(InvalidRequestError, match="'a' is in use"):
        scheduler.add(make_request("a", [2]))


def test_running_out_of_blocks_preempts_the_newest_and_recomputes_it():
    kv = make_kv(num_blocks=5, block_size=2)
    scheduler, model = make_scheduler(kv), FakeModel()
    for i in range(3):
        scheduler.add(make_request(f"r{i}", [i, 3], max_tokens=7, arrival_s=i, seed=i))
    outputs = run_to_end(scheduler, model)

    assert outputs == {f"r{i}": expected_tokens([i, 3], i, 7) for i in range(3)}
    assert scheduler.num_preemptions > 0
    assert kv.num_free_blocks == (5,)


def test_the_longest_running_is_never_preempted():
    kv = make_kv(num_blocks=6, block_size=2)
    scheduler, model = make_scheduler(kv, policy="priority"), FakeModel()
    oldest = make_request("oldest", [9], max_tokens=10, priority=9, arrival_s=0)
    scheduler.add(oldest)
    run_step(scheduler, model)
    for i in range(4):
        scheduler.add(make_request(f"r{i}", [i], max_tokens=10, arrival_s=1 + i))
    run_to_end(scheduler, model)

    assert oldest.num_preemptions == 0
    assert scheduler.num_preemptions > 0
    assert oldest.output_tokens == expected_tokens([9], 0, 10)


def test_nobody_is_admitted_in_the_step_that_preempts():
    kv = make_kv(num_blocks=7, block_size=2, prefix_cache=False)
    scheduler = make_scheduler(kv, policy="shortest_prefill", step_tokens=16)
    scheduler.add(make_request("long", range(6), max_tokens=6, arrival_s=1))
    scheduler.add(make_request("older", range(4), max_tokens=6, arrival_s=0))
    for _ in range(3):
        assert given(step(scheduler)[0]).keys() == {"long", "older"}
    scheduler.add(make_request("tiny", [9], max_tokens=1, arrival_s=2))
    schedule, _ = step(scheduler)

    assert schedule.preempted == ("long",)
    assert given(schedule) == {"older": 1}  # though there would be room for the tiny one
    assert given(step(scheduler)[0]).keys() == {"older", "tiny"}


def test_the_tokens_of_a_preempted_request_go_to_others_of_the_same_step():
    kv = make_kv(num_blocks=40, prefix_cache=False)
    scheduler = make_scheduler(kv, policy="priority", step_tokens=7, requests=4)
    for i, (name, priority) in enumerate((("oldest", 5), ("low", 9), ("high", 0))):
        scheduler.add(make_request(name, [i], max_tokens=9, priority=priority, arrival_s=i))
        step(scheduler)
    scheduler.add(make_request("reading", range(20), priority=1, arrival_s=9))
    assert given(step(scheduler)[0]) == {"oldest": 1, "low": 1, "high": 1, "reading": 4}
    allocate, failures = kv.allocate, ["wanted", "fewer"]

    def failing(request, num_tokens, hit=None):
        if request.request_id == "high" and failures:
            failures.pop()
            return False
        return allocate(request, num_tokens, hit)

    kv.allocate = failing
    schedule, _ = step(scheduler)

    assert schedule.preempted == ("low",)
    assert given(schedule) == {"oldest": 1, "high": 1, "reading": 5}


def test_whoever_reads_first_leaves_the_others_their_tokens():
    scheduler = make_scheduler(make_kv(num_blocks=40), step_tokens=6)
    for i, (name, length) in enumerate((("a", 1), ("b", 1), ("reading", 30))):
        scheduler.add(make_request(name, range(i, i + length), arrival_s=i))
    step(scheduler)
    scheduler._running = dict(reversed(scheduler._running.items()))  # as if it had been the first to run

    assert given(step(scheduler)[0]) == {"reading": 4, "b": 1, "a": 1}


def test_who_has_no_room_is_not_overtaken():
    kv = make_kv(num_blocks=4, block_size=2, prefix_cache=False)
    scheduler = make_scheduler(kv)
    scheduler.add(make_request("running", range(4), max_tokens=3, arrival_s=0))
    step(scheduler)
    scheduler.add(make_request("large", range(4), max_tokens=3, arrival_s=1))
    scheduler.add(make_request("small", [1], max_tokens=1, arrival_s=2))

    small = scheduler.requests["small"]
    assert scheduler._kv.has_room(small, scheduler._kv.no_hit, [scheduler.requests["running"]])
    assert given(step(scheduler)[0]) == {"running": 1}
    step(scheduler)  # running ends
    assert list(given(step(scheduler)[0])) == ["large", "small"]


def test_a_prefix_hit_is_skipped_and_counted():
    scheduler, model = make_scheduler(make_kv(num_blocks=20)), FakeModel()
    scheduler.add(make_request("a", range(5), max_tokens=1))
    run_to_end(scheduler, model)
    scheduler.add(make_request("b", range(5), max_tokens=1))
    schedule = scheduler.schedule(0.0)

    assert given(schedule) == {"b": 1}
    assert schedule.requests[0].start == 4
    (delta,) = scheduler.update(schedule, model.run(schedule, scheduler.requests))
    assert delta.num_cached_tokens == 4


def test_forks_wait_for_the_first_of_them_to_read_the_prompt():
    scheduler, model = make_scheduler(make_kv(num_blocks=40), step_tokens=8), FakeModel()
    for i in range(4):
        scheduler.add(make_request(f"f{i}", range(13), max_tokens=3, arrival_s=i, seed=i))
    computed = 0
    outputs = {f"f{i}": [] for i in range(4)}
    while (schedule := scheduler.schedule(0.0)) is not None:
        computed += schedule.num_tokens
        for delta in scheduler.update(schedule, model.run(schedule, scheduler.requests)):
            outputs[delta.request_id] += delta.tokens

    assert outputs == {f"f{i}": expected_tokens(range(13), i, 3) for i in range(4)}
    assert computed == 13 + 3 * 1 + 4 * 2


@pytest.mark.parametrize("when", ["waiting", "running", "preempted", "in flight", "finished", "unknown"])
def test_abort_ends_a_request_in_every_state_and_twice_is_once(when):
    kv = make_kv(num_blocks=20)
    scheduler, model = make_scheduler(kv), FakeModel()
    other = make_request("other", [4, 4], max_tokens=5)
    scheduler.add(other)
    if when != "unknown":
        scheduler.add(make_request("a", [1, 2, 3], max_tokens=2))
    if when in ("running", "preempted"):
        run_step(scheduler, model)
    if when == "preempted":
        assert scheduler.force_preempt("a")
    if when == "finished":
        run_step(scheduler, model)
        run_step(scheduler, model)
    schedule = scheduler.schedule(0.0) if when == "in flight" else None
    drawn = model.run(schedule, scheduler.requests) if schedule else []
    delta = scheduler.abort("a")

    if when in ("finished", "unknown"):
        assert delta is None
    else:
        assert (delta.request_id, delta.finish_reason, delta.tokens) == ("a", "abort", ())
    assert scheduler.abort("a") is None
    kv.check_integrity()
    if schedule:
        assert [d.request_id for d in scheduler.update(schedule, drawn)] == ["other"]
    run_to_end(scheduler, model)
    assert other.output_tokens == expected_tokens([4, 4], 0, 5)
    assert kv.num_free_blocks == (20,)


def test_a_request_preempted_in_flight_is_passed_over_and_loses_nothing():
    kv = make_kv(num_blocks=20)
    scheduler, model = make_scheduler(kv), FakeModel()
    request = make_request("a", [1, 2, 3], max_tokens=4)
    scheduler.add(request)
    run_step(scheduler, model)
    schedule = scheduler.schedule(0.0)
    drawn = model.run(schedule, scheduler.requests)
    assert scheduler.force_preempt("a")
    assert not scheduler.force_preempt("a")

    assert scheduler.update(schedule, drawn) == []
    run_to_end(scheduler, model)
    assert request.output_tokens == expected_tokens([1, 2, 3], 0, 4)
    assert request.num_preemptions == 1


def test_what_was_drawn_before_a_preemption_is_not_taken_for_what_was_drawn_after_it():
    scheduler, model = make_scheduler(make_kv(num_blocks=20)), FakeModel()
    request = make_request("a", [1, 2, 3], max_tokens=4)
    scheduler.add(request)
    run_step(scheduler, model)
    stale = scheduler.schedule(0.0)
    stale_drawn = model.run(stale, scheduler.requests)
    scheduler.force_preempt("a")
    schedule = scheduler.schedule(0.0)
    assert schedule.requests[0].start != stale.requests[0].start

    assert scheduler.update(stale, stale_drawn) == []
    assert len(scheduler.update(schedule, model.run(schedule, scheduler.requests))) == 1
    run_to_end(scheduler, model)
    assert request.output_tokens == expected_tokens([1, 2, 3], 0, 4)


def test_a_step_that_failed_is_asked_for_again():
    scheduler, model = make_scheduler(make_kv(num_blocks=20)), FakeModel()
    for i in range(3):
        scheduler.add(make_request(f"r{i}", [7, 7, 7, i], arrival_s=i))
    first = scheduler.schedule(0.0)
    again = scheduler.schedule(0.0)

    assert again.requests[: len(first.requests)] == first.requests
    scheduler.update(again, model.run(again, scheduler.requests))
    outputs = run_to_end(scheduler, model)
    assert all(len(tokens) >= 3 for tokens in outputs.values())


@pytest.mark.parametrize(
    ("options", "reason", "why", "count"),
    [
        ({"max_tokens": 3}, "length", None, 3),
        ({"stop_ids": [1]}, "stop", None, 1),
        ({"stop_ids": [1], "stop_token_ids": (1,)}, "stop", 1, 1),
        ({"stop_ids": [2], "max_tokens": 2}, "length", None, 2),
    ],
)
def test_a_request_ends_for_one_reason(options, reason, why, count):
    scheduler = make_scheduler(make_kv(num_blocks=20))
    scheduler.add(make_request("a", [5], **options))
    deltas = []
    while scheduler.requests:
        deltas += step(scheduler)[1]

    assert [d.finish_reason for d in deltas] == [None] * (count - 1) + [reason]
    assert deltas[-1].stop_reason == why
    assert sum(len(d.tokens) for d in deltas) == count


def test_a_stop_string_ends_the_request_in_the_step_of_its_last_token():
    asked = []

    def find_stop(request):
        asked.append(list(request.output_tokens))
        return "END" if len(request.output_tokens) == 2 else None

    kv = make_kv(num_blocks=20)
    scheduler = Scheduler(
        kv, make_scheduler(kv)._policy, max_step_tokens=8, max_requests=4, find_stop=find_stop
    )
    scheduler.add(make_request("a", [5], max_tokens=9, stop=("END",)))
    scheduler.add(make_request("b", [6], max_tokens=3))
    deltas = [d for _ in range(3) for d in step(scheduler)[1]]
    (last,) = [d for d in deltas if d.request_id == "a" and d.finish_reason]

    assert (last.finish_reason, last.stop_reason, last.tokens) == ("stop", "END", (1,))
    assert asked == [[1], [1, 1]]  # only of the request that has stop strings, after each token


def test_prompt_rows_are_scored_once_in_order_and_in_small_chunks():
    kv = make_kv(num_blocks=40)
    scheduler = Scheduler(
        kv, make_scheduler(kv)._policy, max_step_tokens=16, max_requests=4, max_scored_rows=4
    )
    model, prompt = FakeModel(), [1, 2, 3, 4, 0, 1, 2, 3, 4, 0]
    alone = make_scheduler(make_kv(num_blocks=40), step_tokens=16)
    alone.add(make_request("a", prompt, max_tokens=1, prompt_logprobs=0))
    (whole,) = [d.prompt_logprobs for d in run_step(alone, FakeModel())]

    for name in ("a", "b"):
        scheduler.add(make_request(name, prompt, max_tokens=1, prompt_logprobs=0, arrival_s=ord(name)))
    scored = {"a": [], "b": []}
    for number in range(40):
        if number == 2:
            assert scheduler.force_preempt("a")
        schedule = scheduler.schedule(0.0)
        if schedule is None:
            break
        assert sum(r.num_tokens for r in schedule.requests) <= 4 + 1
        for delta in scheduler.update(schedule, model.run(schedule, scheduler.requests)):
            scored[delta.request_id] += delta.prompt_logprobs or ()

    assert not scheduler.requests
    assert scored == {"a": list(whole), "b": list(whole)}
    assert [next(iter(row)) for row in whole] == prompt[1:]


def test_accepted_drafts_are_those_the_target_would_have_drawn():
    assert accept([], [4]) == (4,)
    assert accept([7, 8], [7, 8, 9]) == (7, 8, 9)
    assert accept([7, 8], [7, 1, 9]) == (7, 1)
    assert accept([7, 8], [1, 8, 9]) == (1,)


@pytest.mark.parametrize("num_right", [0, 1, 2])
def test_drafts_change_nothing_but_the_number_of_steps(num_right):
    kv = make_kv(num_blocks=20)
    scheduler, model = make_scheduler(kv), FakeModel()
    request = make_request("a", [1, 2, 3], max_tokens=8)
    scheduler.add(request)
    run_step(scheduler, model)
    want = expected_tokens([1, 2, 3], 0, 8)
    plain = scheduler.schedule(0.0).requests[0]
    drafts = tuple(t if i < num_right else (t + 1) % 5 for i, t in enumerate(want[1:3]))
    assert kv.allocate(request, 3)
    schedule = Schedule((ScheduledRequest("a", plain.start, 3, kv.block_ids(request), drafts),))
    (delta,) = scheduler.update(schedule, model.run(schedule, scheduler.requests))

    assert list(delta.tokens) == want[1 : 2 + num_right]
    assert request.num_computed_tokens == len(request.tokens) - 1
    kv.check_integrity()
    run_to_end(scheduler, model)
    assert request.output_tokens == want
    assert kv.find_prefix(make_request("b", [*request.tokens, 0])).num_tokens == 10  # known by what they hold


def test_a_stop_among_accepted_drafts_ends_there():
    kv = make_kv(num_blocks=20)
    scheduler, model = make_scheduler(kv), FakeModel()
    request = make_request("a", [1, 2, 3], max_tokens=2)
    scheduler.add(request)
    run_step(scheduler, model)
    want = expected_tokens([1, 2, 3], 0, 4)
    plain = scheduler.schedule(0.0).requests[0]
    kv.allocate(request, 3)
    schedule = Schedule((ScheduledRequest("a", plain.start, 3, kv.block_ids(request), tuple(want[1:3])),))
    (delta,) = scheduler.update(schedule, model.run(schedule, scheduler.requests))

    assert (list(delta.tokens), delta.finish_reason) == (want[1:2], "length")
    assert request.num_computed_tokens == len(request.tokens) - 1
    assert kv.num_free_blocks == (20,)


@pytest.mark.parametrize("windows", [(None,), (3,), (None, 3), (4, None, 2)])
@pytest.mark.parametrize("num_blocks", [8, 9, 12, 40])
def test_every_request_gives_its_own_tokens_however_tight_memory_is(windows, num_blocks):
    kv = make_kv(num_blocks=num_blocks, windows=windows)
    scheduler, model = make_scheduler(kv, step_tokens=5), FakeModel(windows=windows)
    prompts = [[1, 2, 3, 4, 0, 1], [1, 2, 3, 4, 0, 2], [1], [1, 2, 3], [4, 3, 2, 1]]
    for i, prompt in enumerate(prompts):
        scheduler.add(make_request(f"r{i}", prompt, max_tokens=9, arrival_s=i, seed=i % 2))
    outputs = run_to_end(scheduler, model)

    assert outputs == {
        f"r{i}": expected_tokens(prompt, i % 2, 9, windows=windows) for i, prompt in enumerate(prompts)
    }
    kv.check_integrity()
    assert kv.num_free_blocks == (num_blocks,) * len(windows)


def test_after_a_failed_step_a_state_begins_again_from_its_last_checkpoint():
    kv = make_kv(num_blocks=9, block_size=2, windows=(STATE,))
    scheduler, model = make_scheduler(kv, step_tokens=16), FakeModel(windows=(STATE,))
    request = make_request("a", range(5), max_tokens=6)
    scheduler.add(request)
    run_step(scheduler, model)
    run_step(scheduler, model)
    assert request.num_computed_tokens == 6
    schedule = scheduler.schedule(0.0)
    model.run(schedule, scheduler.requests)  # and then something is raised

    again = scheduler.schedule(0.0)
    assert (request.num_preemptions, again.requests[0].start) == (1, 6)
    scheduler.update(again, model.run(again, scheduler.requests))
    assert run_to_end(scheduler, model)["a"] == expected_tokens(range(5), 0, 6, windows=(STATE,))[3:]


def test_keys_and_values_are_simply_written_again_after_a_failed_step():
    scheduler, model = make_scheduler(make_kv(num_blocks=9)), FakeModel()
    request = make_request("a", range(5), max_tokens=6)
    scheduler.add(request)
    run_step(scheduler, model)
    first = scheduler.schedule(0.0)

    assert scheduler.schedule(0.0) == first
    assert request.num_preemptions == 0


def test_drafts_on_a_state_are_refused_by_name():
    kv = make_kv(windows=(STATE,))
    scheduler = make_scheduler(kv)
    scheduler.add(make_request("a", range(5)))
    schedule = scheduler.schedule(0.0)
    drafted = Schedule((msgspec.structs.replace(schedule.requests[0], draft_tokens=(4,)),))

    with pytest.raises(EngineError, match="without speculation"):
        scheduler.update(drafted, [Drawn((1,))])


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_whoever_waits_behind_is_not_looked_at_when_one_is_admitted(name):
    policy = Mock(wraps=POLICIES[name]())
    scheduler = Scheduler(make_kv(num_blocks=40), policy, max_step_tokens=8, max_requests=4)
    for i in range(2_000):
        scheduler.add(make_request(f"r{i:04}", [i, i + 1], max_tokens=3, arrival_s=i / 1000))
    policy.admission_key.reset_mock()
    num_steps = 60
    for _ in range(num_steps):
        step(scheduler)

    assert len(scheduler.requests) < 1_950
    assert policy.admission_key.call_count <= 2 * num_steps
