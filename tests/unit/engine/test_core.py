"""EngineCore: the loop, and that what ends is forgotten everywhere."""

import pytest
from tests.fakes.loaded import make_loaded
from tests.fakes.model import expected_tokens, make_request
from tests.fakes.tokenizer import VOCAB_SIZE

from penstock.engine.assemble import make_core
from penstock.errors import EngineError
from penstock.request import SamplingParams


def run(core):
    outputs = {}
    while (deltas := core.step()) is not None:
        for delta in deltas:
            outputs.setdefault(delta.request_id, []).extend(delta.tokens)
    return outputs


def test_steps_until_there_is_nothing_to_do():
    core = make_core(make_loaded(max_step_tokens=8))
    core.add_request(make_request("a", range(12), max_tokens=3))

    assert core.step() == []  # a prompt is being read
    assert core.has_requests
    assert run(core) == {"a": expected_tokens(range(12), 0, 3, vocab_size=VOCAB_SIZE)}
    assert core.step() is None
    assert not core.has_requests


def test_the_clock_is_the_policies_clock():
    core = make_core(make_loaded())
    core.clock = lambda: 123.0
    request = make_request("a", [1])
    core.add_request(request)
    core.step()

    assert request.first_scheduled_s == 123.0


def test_what_ends_or_is_aborted_is_forgotten():
    loaded = make_loaded()
    core = make_core(loaded)
    for name, count in (("a", 1), ("b", 9)):
        request = make_request(name, [1], max_tokens=count)
        request.params = SamplingParams(stop="never said", max_tokens=count)
        core.add_request(request)
    assert set(core._stops._texts) == {"a", "b"}
    core.step()
    assert set(core._stops._texts) == {"b"}
    assert core.abort("b").finish_reason == "abort"
    assert core.abort("b") is None

    assert core._stops._texts == {}
    assert core._inputs._slots == {}


def test_a_scheduler_that_is_stuck_is_an_error_not_a_loop():
    core = make_core(make_loaded())
    core.add_request(make_request("a", [1]))
    core.scheduler.schedule = lambda now_s: None
    with pytest.raises(EngineError, match="requests wait and none can run"):
        core.step()


def test_a_resumed_request_goes_on_with_the_same_tokens():
    """What a supervisor does after a crash: prompt and output apart, everything else the same."""
    prompt = [3, 1, 4, 1, 5, 9]
    want = expected_tokens(prompt, 8, 10, vocab_size=VOCAB_SIZE)
    for emitted in range(10):
        core = make_core(make_loaded())
        request = make_request("a", prompt, max_tokens=10, seed=8)
        request.output_tokens = want[:emitted]
        request.tokens = [*prompt, *want[:emitted]]
        core.add_request(request)

        assert run(core)["a"] == want[emitted:]
