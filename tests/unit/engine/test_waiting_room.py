"""WaitingRoom: bounded by number and bytes, honest about the wait."""

import pytest

from penstock.engine.serving import Limits
from penstock.engine.waiting_room import WaitingRoom
from penstock.errors import OverloadedError


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


def make(num_free=lambda: 0, **limits):
    clock = Clock()
    return WaitingRoom(Limits(**limits), clock, num_free), clock


def test_the_number_is_bounded_and_a_place_given_back_is_free():
    room, _ = make(queued_requests=2)
    first, _ = room.enter(10), room.enter(10)
    with pytest.raises(OverloadedError, match="2 requests wait already"):
        room.enter(10)
    first.leave()
    first.leave()  # once is enough
    assert (room.num_waiting, room.num_bytes) == (1, 10)
    room.enter(10)


def test_the_bytes_are_bounded_and_follow_what_the_call_turns_out_to_be():
    room, _ = make(queued_bytes=100)
    ticket = room.enter(40)
    ticket.resize(90)
    with pytest.raises(OverloadedError, match="90 bytes of requests wait already, this one has 11"):
        room.enter(11)
    with ticket:
        ticket.resize(5)
        assert room.num_bytes == 5
    assert (room.num_waiting, room.num_bytes) == (0, 0)
    ticket.resize(50)
    assert room.num_bytes == 0


def depart_every(room, clock, seconds, count, waiting):
    """`count` calls leave to run, one each so many seconds, while `waiting` others stay."""
    stay = [room.enter(1) for _ in range(waiting)]
    for _ in range(count):
        ticket = room.enter(1)
        clock.now_s += seconds
        ticket.leave(to_run=True)
    return stay


def test_the_predicted_wait_is_that_of_those_before():
    room, clock = make(queued_requests=11, queue_wait_s=100.0)
    depart_every(room, clock, 2.0, 40, 10)
    room.enter(1)
    assert room.predicted_wait_s == pytest.approx(22.0, rel=0.01)
    with pytest.raises(OverloadedError) as raised:
        room.enter(1)
    assert raised.value.retry_after_s == pytest.approx(22.0, rel=0.01)
    assert (raised.value.http_status, raised.value.code) == (503, "engine_overloaded")


def test_who_would_wait_too_long_is_refused_now_and_not_later():
    room, clock = make(queue_wait_s=15.0)
    depart_every(room, clock, 2.0, 40, 7)
    room.enter(1)
    with pytest.raises(OverloadedError, match="would wait 16 s and 15 s is the limit") as raised:
        room.enter(1)
    assert raised.value.retry_after_s == pytest.approx(1.0, rel=0.1)


def test_who_can_begin_at_once_does_not_wait():
    room, clock = make(num_free=lambda: 4, queue_wait_s=15.0)
    depart_every(room, clock, 10.0, 40, 2)
    room.enter(1), room.enter(1)
    assert room.predicted_wait_s == 0.0
    room.enter(1)
    assert room.predicted_wait_s == pytest.approx(10.0)


def test_the_time_in_which_nobody_waits_is_no_wait():
    room, clock = make()
    for _ in range(40):
        ticket = room.enter(1)
        clock.now_s += 3600
        ticket.leave(to_run=True)

    assert room.predicted_wait_s == 0.0
    assert room.enter(1) is not None
