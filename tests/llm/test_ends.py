"""How answers end: stop strings and ids, end of sequence, lengths, Ctrl-C, a stream that is dropped."""

import gc
import os
import signal
import threading

import pytest
from tests.llm.conftest import one, params

PROMPT = "import os\n\n\ndef main("


LONG = {"max_tokens": 40, "temperature": 1.0, "seed": 3}  # words that hardly repeat


@pytest.fixture(scope="module")
def text(shared_llm):
    """What is written when nothing stops it."""
    return one(shared_llm, PROMPT, **LONG).text


def spans(text, length):
    """Every stop string of `length` that the text holds, with the place of its first occurrence."""
    return {text[i : i + length]: text.index(text[i : i + length]) for i in range(len(text) - length + 1)}


@pytest.mark.parametrize("length", [1, 2, 3, 7])
@pytest.mark.parametrize("include", [False, True])
def test_a_stop_string_ends_the_answer_wherever_tokens_begin(llm, text, length, include):
    for stop, at in list(spans(text, length).items())[:12]:
        answer = one(llm, PROMPT, **LONG, stop=(stop,), include_stop_str_in_output=include)

        assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)
        assert answer.text == text[: at + len(stop) * include]


def test_nothing_of_a_stop_string_is_streamed(llm, text):
    for stop, at in list(spans(text, 5).items())[:12]:
        pieces = [p.outputs[0].text for p in llm.stream(PROMPT, params(**LONG, stop=stop))]

        assert "".join(pieces) == text[:at]


def test_the_beginning_of_a_stop_string_that_does_not_come_is_shown(llm, text):
    stop = text[-3:] + "\u2603"

    assert one(llm, PROMPT, **LONG, stop=stop).text == text
    assert "".join(p.outputs[0].text for p in llm.stream(PROMPT, params(**LONG, stop=stop))) == text


def test_the_first_of_several_stop_strings_wins(llm, text):
    places = sorted(spans(text, 4).items(), key=lambda item: item[1])
    (early, at), (late, _) = places[4], places[-1]
    answer = one(llm, PROMPT, **LONG, stop=(late, early))

    assert (answer.stop_reason, answer.text) == (early, text[:at])


def test_a_stop_id_ends_the_answer_and_is_no_text_unless_included(llm):
    tokens = one(llm, PROMPT, **LONG).token_ids
    stop = tokens[9]
    at = tokens.index(stop)
    plain, included = (
        one(llm, PROMPT, **LONG, stop_token_ids=(stop,), include_stop_str_in_output=include)
        for include in (False, True)
    )

    assert (plain.finish_reason, plain.stop_reason) == ("stop", stop)
    assert plain.token_ids == included.token_ids == tokens[: at + 1]
    assert plain.text == llm.tokenizer.decode(tokens[:at])
    assert included.text == llm.tokenizer.decode(tokens[: at + 1])


def test_an_answer_ends_at_the_end_of_sequence_unless_that_is_ignored(llm):
    eos = llm.tokenizer.eos_token_id
    force = {"logit_bias": {eos: 100.0}}
    ended = one(llm, PROMPT, ignore_eos=False, **force)
    ignored = one(llm, PROMPT, ignore_eos=True, **force)

    assert (ended.finish_reason, ended.stop_reason) == ("stop", None)
    assert (ended.token_ids, ended.text) == ([eos], "")
    assert ignored.token_ids == [eos] * 12
    assert ignored.finish_reason == "length"


def test_min_tokens_hold_the_end_back(llm):
    eos = llm.tokenizer.eos_token_id
    answer = one(llm, PROMPT, ignore_eos=False, min_tokens=5, logit_bias={eos: 100.0})

    assert len(answer.token_ids) == 6
    assert answer.token_ids[5] == eos
    assert eos not in answer.token_ids[:5]


def test_without_max_tokens_an_answer_fills_the_context(llm):
    ids = [(5 * i) % 4000 + 20 for i in range(2040)]
    answer = one(llm, {"prompt_token_ids": ids}, max_tokens=None)

    assert len(answer.token_ids) == 8
    assert answer.finish_reason == "length"


def test_a_dropped_stream_frees_its_blocks(llm):
    kv = llm.core.scheduler._kv
    stream = llm.stream(PROMPT, params(max_tokens=500))
    next(stream)

    assert kv.num_free_blocks != kv.num_usable_blocks
    del stream
    gc.collect()

    assert kv.num_free_blocks == kv.num_usable_blocks
    assert not llm.core.has_requests


def test_a_stream_that_was_never_read_holds_nothing(llm):
    llm.stream(PROMPT, params(max_tokens=500))
    gc.collect()

    assert not llm.core.has_requests


def test_ctrl_c_in_generate_leaves_the_engine_usable(llm):
    want = one(llm, PROMPT).token_ids
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        llm.generate([PROMPT] * 8, params(max_tokens=1500), use_tqdm=False)
    timer.join()

    assert not llm.core.has_requests
    assert one(llm, PROMPT).token_ids == want
