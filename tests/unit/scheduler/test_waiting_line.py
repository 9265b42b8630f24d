"""WaitingLine: the policy's order, whoever comes, leaves or ages; and what it costs."""

import time
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.scheduler.policy import POLICIES
from penstock.scheduler.waiting_line import WaitingLine


@dataclass(frozen=True)
class Waits:
    request_id: str
    arrival_s: float
    priority: int = 0
    num_uncomputed_tokens: int = 1


def line_of(num, policy="fcfs"):
    line = WaitingLine()
    line.order_by(POLICIES[policy](), 0.0)
    for i in range(num):
        line.add(Waits(str(i), float(i), i % 3, i % 50), 0.0)
    return line


MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(-3, 3), st.integers(1, 9)),
        st.tuples(st.just("discard"), st.integers(0, 40), st.just(0)),
        st.tuples(st.just("pop"), st.just(0), st.just(0)),
        st.tuples(st.just("wait"), st.integers(0, 30), st.just(0)),
        st.tuples(st.just("reorder"), st.just(0), st.just(0)),
    ),
    max_size=80,
)


@pytest.mark.parametrize("name", POLICIES)
@given(moves=MOVES)
def test_it_is_the_order_of_sorting_everybody_anew_each_time(name, moves):
    policy, line, members, now_s = POLICIES[name](), WaitingLine(), {}, 0.0
    line.order_by(policy, now_s)
    for number, (what, a, b) in enumerate(moves):
        if what == "add":
            member = Waits(str(number), now_s, a, b)
            members[member.request_id] = member
            line.add(member, now_s)
        elif what == "discard":
            assert line.discard(str(a)) is (members.pop(str(a), None) is not None)
        elif what == "wait":
            now_s += a / 10
        elif what == "reorder":
            line.order_by(policy, now_s)
        elif members:
            first = min(members.values(), key=lambda m: policy.admission_key(m, now_s))
            assert line.pop(now_s) is members.pop(first.request_id)
        assert len(line) == len(members)
        assert set(line) == set(members.values())
    while members:
        first = min(members.values(), key=lambda m: policy.admission_key(m, now_s))
        assert line.pop(now_s) is members.pop(first.request_id)
    with pytest.raises(IndexError):
        line.pop(now_s)


def test_members_that_came_before_the_order_have_their_place_in_it():
    line = WaitingLine()
    for name, priority in (("a", 2), ("b", 0), ("c", 1)):
        line.add(Waits(name, 0.0, priority), 0.0)
    line.order_by(POLICIES["priority"](), 0.0)

    assert [line.pop(0.0).request_id for _ in range(3)] == ["b", "c", "a"]


def test_those_who_leave_take_no_memory_with_them():
    line = line_of(10, "shortest_prefill")
    for i in range(10_000):
        line.add(Waits(f"x{i}", 1e9), 0.0)
        line.discard(f"x{i}")

    assert len(line._order) + len(line._changes) < 500
    assert len(line._keys) == len(line) == 10


def test_a_turn_costs_about_the_same_whether_a_hundred_wait_or_ten_thousand():
    def seconds_per_turn(num):
        best = float("inf")
        for _ in range(5):
            line = line_of(num)
            began_s = time.thread_time()
            for i in range(90):
                line.pop(0.0)
                line.add(Waits(f"new{i}", 1e6 + i), 0.0)
            best = min(best, time.thread_time() - began_s)
        return best / 90

    assert seconds_per_turn(10_000) < 10 * seconds_per_turn(100)  # of all who wait it would be a hundredfold
