"""The wire: what goes in comes out, and nothing else is ever believed."""

import pickle
from array import array

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock import errors
from penstock.config import EngineConfig
from penstock.engine.wire import (
    VERSION,
    Abort,
    Hello,
    Start,
    Step,
    Stop,
    Submit,
    decode,
    encode,
    error_of,
    fault_of,
    pack_tokens,
    request_of,
    tokens_of,
)
from penstock.request import GrammarSpec, SamplingParams
from penstock.step import RequestDelta

SUBMIT = Submit(
    request_id="7/1",
    prompt=pack_tokens([1, 2, 3]),
    output=pack_tokens([4]),
    params=SamplingParams(stop=("x",), logit_bias={5: -1.0}, seed=-(2**63), top_p=0.5),
    seed=2**64 - 1,
    arrival_s=1.5,
    max_output_tokens=9,
    stop_ids=(2, 3),
    priority=-1,
    cache_salt="3:key salt",
    key_id="key",
    bad_token_ids=((1, 2), (3,)),
    num_scored_tokens=2,
    grammar=GrammarSpec("regex", "a+"),
    pooling="mean",
)
DELTA = RequestDelta("7", (5, 6), ({5: (-0.5, 1)}, {6: (-1.5, 3), 9: (-0.1, 1)}), ({1: (-2.0, 4)},),
                     "stop", "END", 64, 1, 2.5, "text")  # fmt: skip
MESSAGES = [
    Hello(VERSION, 12),
    Start(VERSION, "name", "/folder", EngineConfig(max_context=100)),
    SUBMIT,
    Abort(("1", "2/3")),
    Stop(),
    Step([DELTA, RequestDelta("8", (1,), stop_reason=7)]),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_what_is_sent_arrives(message):
    assert decode(encode(message)) == message


def test_a_submitted_request_is_the_engines_record_of_it():
    request = request_of(SUBMIT)

    assert (request.prompt_tokens, request.output_tokens, request.tokens) == ((1, 2, 3), [4], [1, 2, 3, 4])
    assert (request.seed, request.num_scored_tokens, request.cache_salt) == (2**64 - 1, 2, "3:key salt")
    assert request.stop_ids == {2, 3}
    assert request.grammar == GrammarSpec("regex", "a+")


def test_tokens_are_four_bytes_each():
    assert pack_tokens([1, 2**31 - 1]) == b"\1\0\0\0\xff\xff\xff\x7f"
    assert tokens_of(pack_tokens(array("i", range(100)))) == list(range(100))
    with pytest.raises(ValueError):
        tokens_of(b"\1\0\0")


def test_the_frame_of_a_step_is_small():
    step = Step(
        [RequestDelta(str(i), (1000 + i,), num_cached_tokens=64, first_scheduled_s=1.0) for i in range(32)]
    )

    assert len(encode(step)) < 32 * 32


@settings(max_examples=400, deadline=None)
@given(data=st.binary(max_size=200))
def test_garbage_is_none(data):
    message = decode(data)
    assert message is None or decode(encode(message)) == message


@settings(max_examples=400, deadline=None)
@given(message=st.sampled_from(MESSAGES), data=st.data())
def test_a_damaged_frame_is_none_or_a_message_and_never_an_exception(message, data):
    frame = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(frame) - 1))
        frame[at] = data.draw(st.integers(0, 255))
    got = decode(bytes(frame[: data.draw(st.integers(0, len(frame)))]))

    assert got is None or decode(encode(got)) is not None


@pytest.mark.parametrize(
    "value",
    [{"a": 1}, [99], [1, "one", 2], [4], [5, ["a"], 3, 4, "x"] * 3, None, "text", 7, [[1, 2]], ["1", 1, 2]],
)
def test_other_msgpack_is_none(value):
    assert decode(msgspec.msgpack.encode(value)) is None


def test_a_pickle_is_none():
    assert decode(pickle.dumps(MESSAGES[2].prompt)) is None


def test_nesting_without_end_is_none():
    assert decode(b"\x91" * 100_000) is None


@pytest.mark.parametrize(
    "error",
    [
        errors.ModelLoadError("truncated", "a"),
        errors.ContextLengthError("b", param="max_tokens"),
        errors.InvalidRequestError("c", param="stop", code="invalid_type"),
        errors.OutOfMemoryError("d"),
        errors.ConfigError("e"),
        errors.EngineError("f"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_crosses_with_all_that_it_says(error):
    again = error_of(fault_of("1", error))

    assert (type(again), str(again)) == (type(error), str(error))
    assert (again.code, getattr(again, "param", None)) == (error.code, getattr(error, "param", None))
    assert (again.exit_code, again.http_status) == (error.exit_code, error.http_status)


def test_an_error_that_this_side_does_not_know_is_an_engine_error():
    fault = msgspec.structs.replace(fault_of("", errors.EngineError("x")), kind="SystemExit")

    assert type(error_of(fault)) is errors.EngineError
