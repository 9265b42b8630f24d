"""Watch and Pulse: what silence means, and when the other side is gone."""

import socket
import threading

import msgspec
import pytest

from penstock.engine.liveness import Beat, Pulse, Stage, Vitals, Watch, decode_beat
from penstock.engine.serving import Limits
from penstock.engine.step_timer import StepTimer

LIMITS = Limits(heartbeat_s=5.0, hang_s=10.0)


def beat(num_steps=0, turn_began_s=None, predicted_s=0.0, *, num_running=0, cpu_s=0.0):
    return msgspec.structs.replace(
        Vitals(turn_began_s, predicted_s, num_steps, num_running).beat(0.0), cpu_s=cpu_s
    )


def ready_watch():
    watch = Watch(LIMITS, 0.0)
    watch.enter(Stage.READY)
    return watch


def first_complaint(watch, beats, seconds=200, *, num_given=lambda now: 0):
    """Tick each second, with a beat where `beats` gives one: the second and the words of the first one."""
    for now in range(1, seconds):
        if (one := beats(now)) is not None:
            watch.take(one)
        if (reason := watch.tick(float(now), num_given(now))) is not None:
            return now, reason
    return None


def test_an_idle_engine_that_beats_is_never_hung():
    assert first_complaint(ready_watch(), lambda now: beat()) is None


def test_silence_is_late_after_five_seconds_and_a_hang_after_ten():
    watch = ready_watch()
    watch.take(beat())
    watch.tick(4.0)
    assert watch.is_fresh
    for now in (5.0, 6.0, 7.0, 8.0):
        watch.tick(now)
    assert not watch.is_fresh
    second, reason = first_complaint(ready_watch(), lambda now: None)

    assert second == 11
    assert reason == "no heartbeat for 11 s"


def test_a_step_without_end_is_a_hang_though_the_heart_beats():
    second, reason = first_complaint(ready_watch(), lambda now: beat(7, 0.5))

    assert 11 <= second <= 12
    assert "no step finished for" in reason


def test_steps_that_end_are_no_hang_however_many():
    assert first_complaint(ready_watch(), lambda now: beat(now, float(now))) is None
    assert first_complaint(ready_watch(), lambda now: beat(now // 9, float(now // 9))) is None


def test_a_step_has_five_times_what_it_was_predicted():
    second, _ = first_complaint(ready_watch(), lambda now: beat(7, 0.5, predicted_s=8.0))

    assert 41 <= second <= 42


def test_loading_has_more_patience():
    second, reason = first_complaint(Watch(LIMITS, 0.0), lambda now: None)

    assert second == 121
    assert "heartbeat" in reason


def test_an_engine_that_beats_and_says_nothing_has_lost_its_greeting():
    second, reason = first_complaint(Watch(LIMITS, 0.0), lambda now: beat())
    assert 10 <= second <= 12
    assert "has said nothing" in reason


def test_a_load_may_take_its_time_while_it_works_and_not_when_it_stands_still():
    def loading():
        watch = Watch(LIMITS, 0.0)
        watch.enter(Stage.LOADING)
        return watch

    assert first_complaint(loading(), lambda now: beat(cpu_s=0.2 * now), 2000) is None
    assert first_complaint(loading(), lambda now: beat(cpu_s=0.001 * now), 2000) is None  # 50 ms in 50 s
    second, reason = first_complaint(loading(), lambda now: beat(cpu_s=min(now, 30.0)), 2000)
    assert 150 <= second <= 152
    assert "is loading and has done nothing" in reason


def test_an_engine_that_does_not_run_what_it_was_given_has_lost_it():
    second, reason = first_complaint(ready_watch(), lambda now: beat(7), num_given=lambda now: 3)
    assert 10 <= second <= 12
    assert reason == "it has had 3 calls for 11 s and runs none"

    for beats in (
        beat,  # it takes steps between the beats
        lambda now: beat(7, num_running=1),  # it has them
        lambda now: beat(7, float(now)),  # it reads what has come
    ):
        assert first_complaint(ready_watch(), beats, num_given=lambda now: 3) is None
    often = lambda now: 3 if now % 9 else 0  # noqa: E731
    assert first_complaint(ready_watch(), lambda now: beat(7), num_given=often) is None


def test_a_front_end_that_was_frozen_blames_nobody_for_it():
    watch = ready_watch()
    watch.take(beat(1, 0.1))
    assert watch.tick(1.0) is None
    assert watch.tick(5000.0) is None  # the whole machine was asleep
    watch.take(beat(2, 0.2))
    assert watch.tick(5001.0) is None


def test_what_is_no_beat_is_none():
    for packet in (b"", b"\xc0", b"\x80", b"\x94\x01\x02\x03\x04", b"\x9b" + b"\xa1x" * 11):
        assert decode_beat(packet) is None
    assert isinstance(decode_beat(msgspec.msgpack.encode(beat())), Beat)


def test_the_pulse_beats_and_ends_when_the_other_end_closes():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    orphaned = threading.Event()
    vitals = Vitals(num_steps=3)
    pulse = Pulse(theirs, vitals, orphaned.set)
    pulse.start()
    assert decode_beat(ours.recv(4096)).num_steps == 3
    assert not orphaned.is_set()
    ours.close()

    assert orphaned.wait(5)
    pulse.join(5)
    theirs.close()


class Executor:
    def forward(self, step):
        return "output"

    def describe(self):
        return {}


def test_the_timer_predicts_from_what_it_saw(monkeypatch):
    clock = iter([0.0, 1.0, 10.0, 12.0, 20.0, 20.5])
    monkeypatch.setattr("penstock.engine.step_timer.time.monotonic", lambda: next(clock))
    vitals = Vitals()
    timer = StepTimer(vitals, Executor(), weight_bytes=10**9)
    step = type("Step", (), {"tokens": range(100)})()

    assert timer.predict(512) == pytest.approx(25.6)  # nothing is known: a slow machine is assumed
    assert timer.forward(step) == "output"
    assert timer.predict(512) == pytest.approx(5.12)
    assert timer.predict(1) == pytest.approx(1.0)  # no step is quicker for having few rows
    timer.forward(step)
    assert vitals.predicted_s == pytest.approx(1.0)
    assert timer.predict(1) == pytest.approx(1.2)
    assert vitals.num_steps == 2
