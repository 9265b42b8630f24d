"""Dispatcher: whose turn it is, and who is to blame when the engine dies."""

from tests.fakes.tokenizer import make_tokenizer

from penstock.engine.admission import Terms
from penstock.engine.answer import Answer
from penstock.engine.dispatcher import AHEAD, Dispatcher
from penstock.engine.journal import Entry
from penstock.engine.serving import Call
from penstock.engine.wire import Abort, Submit
from penstock.request import SamplingParams
from penstock.scheduler.policy import POLICIES
from penstock.step import RequestDelta


class Engine:
    """Notes what it is sent."""

    def __init__(self, dispatcher, max_requests=2, policy="fcfs"):
        self.sent = []
        dispatcher.engine_ready(self.sent.append, POLICIES[policy](), max_requests, 0.0)

    @property
    def keys(self):
        return [m.request_id for m in self.sent if isinstance(m, Submit)]

    @property
    def aborted(self):
        return [i for m in self.sent if isinstance(m, Abort) for i in m.request_ids]


def make_entry(key, *, n=1, priority=0, length=1):
    call = Call(request_id=f"client {key}", prompt_tokens=[1] * length, params=SamplingParams(n=n),
                priority=priority)  # fmt: skip
    answer = Answer(call.request_id, call.prompt_tokens, call.params, make_tokenizer(), seed=0,
                    arrival_s=float(key), prompt=None, fingerprint="")  # fmt: skip
    return Entry(str(key), call, Terms(tuple(range(n)), 9, frozenset(), ()), answer, salt="")


def make(num=0, **options):
    started = []
    dispatcher = Dispatcher(started.append)
    entries = [make_entry(i, **options) for i in range(1, num + 1)]
    for entry in entries:
        dispatcher.add(entry, 0.0)
    return dispatcher, entries, started


def test_nothing_leaves_the_queue_before_there_is_an_engine():
    dispatcher, entries, started = make(3)
    assert started == []

    engine = Engine(dispatcher)
    assert engine.keys == ["1", "2", "3"]
    assert started == entries


def test_the_engine_is_given_what_it_can_run_and_a_few():
    dispatcher, entries, started = make(20)
    engine = Engine(dispatcher, max_requests=2)
    assert len(engine.keys) == 2 + AHEAD

    dispatcher.remove(entries[0], 0.0)
    assert len(engine.keys) == 3 + AHEAD
    assert len(started) == 3 + AHEAD


def test_each_of_n_counts():
    dispatcher, _, _ = make(5, n=4)
    engine = Engine(dispatcher, max_requests=4)

    assert engine.keys == ["1", "1/1", "1/2", "1/3", "2", "2/1", "2/2", "2/3"]


def test_the_policy_orders_the_queue():
    dispatcher, _, _ = make()
    for key, priority in ((1, 5), (2, 0), (3, -5)):
        dispatcher.add(make_entry(key, priority=priority), 0.0)
    assert Engine(dispatcher, policy="priority").keys == ["3", "2", "1"]

    dispatcher, _, _ = make()
    for key, length in ((1, 50), (2, 5)):
        dispatcher.add(make_entry(key, length=length), 0.0)
    assert Engine(dispatcher, policy="shortest_prefill").keys == ["2", "1"]


def test_who_leaves_the_queue_is_never_run_and_who_leaves_the_engine_is_aborted():
    dispatcher, entries, _ = make(8)
    engine = Engine(dispatcher, max_requests=2)
    dispatcher.remove(entries[7], 0.0)
    dispatcher.remove(entries[0], 0.0)
    assert engine.aborted == ["1"]
    assert "8" not in engine.keys

    entries[1].take(0, RequestDelta("2", (5,), finish_reason="length"), 0.0)
    dispatcher.remove(entries[1], 0.0)
    assert engine.aborted == ["1"]  # it had ended: there is nothing to abort


def test_after_a_kill_from_outside_all_go_back_at_once_in_their_order():
    dispatcher, entries, started = make(4)
    Engine(dispatcher, max_requests=4)

    assert dispatcher.engine_lost(of_itself=False) is None
    assert Engine(dispatcher, max_requests=4).keys == ["1", "2", "3", "4"]
    assert started == entries  # each left the queue once


def test_after_a_death_of_its_own_suspects_go_back_one_at_a_time():
    dispatcher, entries, _ = make(3)
    Engine(dispatcher)
    assert dispatcher.engine_lost(of_itself=True) is None
    engine = Engine(dispatcher)
    newcomer = make_entry(9)
    dispatcher.add(newcomer, 0.0)
    assert engine.keys == ["1"]

    dispatcher.has_got_on(entries[0], 0.0)
    assert engine.keys == ["1", "2"]
    dispatcher.has_got_on(entries[0], 0.0)  # no trial of its own: nothing follows from it
    assert engine.keys == ["1", "2"]
    dispatcher.has_got_on(entries[1], 0.0)
    dispatcher.has_got_on(entries[2], 0.0)
    assert engine.keys == ["1", "2", "3", "9"]


def test_who_alone_can_have_caused_two_deaths_is_condemned():
    dispatcher, entries, _ = make(3)
    Engine(dispatcher)
    dispatcher.engine_lost(of_itself=True)  # one of three
    Engine(dispatcher)
    dispatcher.has_got_on(entries[0], 0.0)
    assert dispatcher.engine_lost(of_itself=True) is None  # the second was on trial: once
    assert entries[1].num_strikes == 1

    engine = Engine(dispatcher)
    dispatcher.has_got_on(entries[0], 0.0)
    assert dispatcher.engine_lost(of_itself=True) is entries[1]
    engine = Engine(dispatcher)
    dispatcher.has_got_on(entries[0], 0.0)
    assert engine.keys == ["1", "3"]
    assert entries[0].num_strikes == entries[2].num_strikes == 0


def test_who_is_alone_needs_no_trial_to_be_blamed():
    dispatcher, (entry,), _ = make(1)
    Engine(dispatcher)
    assert dispatcher.engine_lost(of_itself=True) is None
    Engine(dispatcher)
    assert dispatcher.engine_lost(of_itself=True) is entry
    assert Engine(dispatcher).keys == []


def test_getting_on_forgives():
    dispatcher, (entry,), _ = make(1)
    for _ in range(5):
        Engine(dispatcher)
        dispatcher.has_got_on(entry, 0.0)
        assert dispatcher.engine_lost(of_itself=True) is None


def test_kills_from_outside_condemn_nobody_and_end_no_trial():
    dispatcher, entries, _ = make(2)
    Engine(dispatcher)
    dispatcher.engine_lost(of_itself=True)
    for _ in range(5):
        engine = Engine(dispatcher)
        assert engine.keys == ["1"]
        assert dispatcher.engine_lost(of_itself=False) is None
    assert [entry.num_strikes for entry in entries] == [0, 0]


def test_a_suspect_that_leaves_holds_up_nobody():
    dispatcher, entries, _ = make(3)
    Engine(dispatcher)
    dispatcher.engine_lost(of_itself=True)
    engine = Engine(dispatcher)
    dispatcher.remove(entries[1], 0.0)
    dispatcher.remove(entries[0], 0.0)

    assert engine.keys == ["1", "3"]
    assert engine.aborted == ["1"]


def test_what_has_ended_does_not_come_back():
    dispatcher, entries, _ = make(2)
    Engine(dispatcher)
    entries[0].take(0, RequestDelta("1", (5,), finish_reason="stop"), 0.0)
    dispatcher.engine_lost(of_itself=False)

    assert Engine(dispatcher).keys == ["2"]


def test_a_replay_sends_what_was_emitted_apart_and_only_what_is_open():
    dispatcher, (entry,), _ = make(1, n=2)
    Engine(dispatcher)
    entry.take(0, RequestDelta("1", (5, 6), finish_reason="stop"), 0.0)
    entry.take(1, RequestDelta("1/1", (7,), prompt_logprobs=({1: (0.0, 1)},)), 0.0)
    dispatcher.engine_lost(of_itself=False)
    (submit,) = Engine(dispatcher).sent

    assert submit.request_id == "1/1"
    assert (submit.prompt, submit.output) == (b"\1\0\0\0", b"\7\0\0\0")
    assert (submit.seed, submit.num_scored_tokens) == (1, 1)
