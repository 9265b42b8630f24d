"""Every scheduling policy keeps the promises of penstock.scheduler.policy.SchedulingPolicy."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.model import make_request

from penstock.scheduler.policy import POLICIES

REQUESTS = st.lists(
    st.tuples(st.integers(1, 50), st.floats(0, 1_000), st.integers(-5, 5)), min_size=1, max_size=12
)


def requests_of(drawn):
    return [
        make_request(f"r{i}", range(length), arrival_s=arrival, priority=priority)
        for i, (length, arrival, priority) in enumerate(drawn)
    ]


@pytest.mark.parametrize("name", POLICIES)
@given(drawn=REQUESTS, now_s=st.floats(1_000, 2_000))
def test_the_order_is_pure_and_has_no_ties(name, drawn, now_s):
    requests = requests_of(drawn)
    before = copy.deepcopy(requests)
    keys = [POLICIES[name]().admission_key(r, now_s) for r in requests]

    assert keys == [POLICIES[name]().admission_key(r, now_s) for r in requests]
    assert len(set(keys)) == len(keys)
    assert sorted(keys)
    assert requests == before


@pytest.mark.parametrize("name", POLICIES)
@given(drawn=REQUESTS, times=st.lists(st.floats(0, 2_000), min_size=2, max_size=20))
def test_a_key_changes_once_at_most_and_when_it_is_said(name, drawn, times):
    policy = POLICIES[name]()
    for request in requests_of(drawn):
        change_s = policy.key_changes_s(request)
        keys = {t: policy.admission_key(request, t) for t in (*times, change_s) if t >= request.arrival_s}
        assert len({key for t, key in keys.items() if t < change_s}) <= 1
        assert len({key for t, key in keys.items() if t >= change_s}) <= 1


@pytest.mark.parametrize("name", POLICIES)
@given(drawn=REQUESTS)
def test_the_victim_is_one_of_those_given_whatever_their_order(name, drawn):
    requests = requests_of(drawn)
    policy = POLICIES[name]()
    victim = policy.victim(requests)

    assert any(victim is r for r in requests)
    assert policy.victim(requests[::-1]) is victim


@pytest.mark.parametrize("name", POLICIES)
@given(length=st.integers(1, 1_000), priority=st.integers(-5, 5), newcomer=st.integers(-5, 5))
def test_whoever_waits_overtakes_every_newcomer(name, length, priority, newcomer):
    policy = POLICIES[name]()
    patient = make_request("patient", range(length), arrival_s=0.0, priority=priority)
    for waited_s in (600.0, 6_000.0):
        best = make_request("newcomer", [0], arrival_s=waited_s, priority=newcomer)

        assert policy.admission_key(patient, waited_s) < policy.admission_key(best, waited_s)


def test_first_come_first_served_is_by_arrival_and_preempts_the_newest():
    policy = POLICIES["fcfs"]()
    requests = [make_request(name, [0], arrival_s=t) for name, t in (("b", 2.0), ("a", 1.0), ("c", 3.0))]
    order = sorted(requests, key=lambda r: policy.admission_key(r, 9.0))

    assert [r.request_id for r in order] == ["a", "b", "c"]
    assert policy.victim(requests).request_id == "c"


def test_lower_priority_numbers_go_first_and_higher_ones_are_preempted_first():
    policy = POLICIES["priority"]()
    requests = [make_request(str(p), [0], arrival_s=float(-p), priority=p) for p in (1, 0, 2)]
    order = sorted(requests, key=lambda r: policy.admission_key(r, 9.0))

    assert [r.request_id for r in order] == ["0", "1", "2"]
    assert policy.victim(requests).request_id == "2"


def test_short_prompts_go_first_until_patience_ends():
    policy = POLICIES["shortest_prefill"]()
    long, short = make_request("long", range(9), arrival_s=0.0), make_request("short", [0], arrival_s=1.0)

    assert policy.admission_key(short, 1.5) < policy.admission_key(long, 1.5)
    assert policy.admission_key(long, 2.5) < policy.admission_key(short, 2.5)
