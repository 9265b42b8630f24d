"""OutputText, StopFinder and Answer: one text, whoever makes it and however often it is asked for."""

from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.model import make_request
from tests.fakes.tokenizer import make_tokenizer

from penstock.engine.answer import Answer
from penstock.engine.output_text import OutputText, StopFinder
from penstock.request import SamplingParams
from penstock.step import RequestDelta

TOKENIZER = make_tokenizer()
TOKENS = st.lists(st.sampled_from([0, 1, 2, 28, 29, 27]), min_size=1, max_size=30)
STOPS = st.lists(st.text("abcé", min_size=1, max_size=4), max_size=3).map(tuple)


def params(**options):
    return SamplingParams(max_tokens=30, **options)


def whole_text(tokens, stops, include):
    """By hand: decode everything, cut at the earliest stop."""
    text = TOKENIZER.decode(tokens)
    found = [(text.find(stop), rank) for rank, stop in enumerate(stops) if stop in text]
    if not found:
        return text, None
    at, rank = min(found)
    return text[: at + (len(stops[rank]) if include else 0)], stops[rank]


@given(tokens=TOKENS, stops=STOPS.filter(bool), include=st.booleans())
def test_pieces_join_to_the_whole_text_up_to_a_stop(tokens, stops, include):
    text = OutputText(TOKENIZER, params(stop=stops, include_stop_str_in_output=include))
    pieces = []
    for token in tokens:
        text.feed(token)
        pieces.append(text.take())
        if text.stop is not None:
            break
    text.finish()
    pieces.append(text.take())
    got = "".join(pieces)

    if text.stop is None:
        assert (got, None) == whole_text(tokens, stops, include)
    else:
        used = tokens[: len(pieces) - 1]
        assert got == whole_text(used, (text.stop,), include)[0]
        assert text.stop in TOKENIZER.decode(used)
    if not include:
        assert not any(stop in got for stop in stops)


def run_with_stops(tokens, options, *, stop_ids=(), dies_before=()):
    """What the engine says of a request whose draws are `tokens`; a new finder before some of them."""
    finder, deltas = StopFinder(TOKENIZER), []
    request = make_request("a", [0])
    request.params = options
    finder.begin(request)
    for count, token in enumerate(tokens, 1):
        if count in dies_before:
            finder = StopFinder(TOKENIZER)
            finder.begin(request)
        request.append(token)
        reason, stop = None, None
        if token in stop_ids:
            reason, stop = "stop", token
        elif (stop := finder(request)) is not None:
            reason = "stop"
        elif count == len(tokens):
            reason = "length"
        deltas += finder.complete(
            [RequestDelta("a", (token,), None, None, reason, stop, ends_with_stop_id=token in stop_ids)]
        )
        if reason is not None:
            break
    return deltas


@given(
    tokens=TOKENS,
    stops=STOPS.filter(bool),
    min_tokens=st.integers(0, 4),
    include=st.booleans(),
    stop_ids=st.sampled_from([(), (2,), (28,)]),
    deaths=st.sets(st.integers(1, 30), max_size=5),
)
def test_a_new_engine_goes_on_with_the_same_text_and_the_same_stop(
    tokens, stops, min_tokens, include, stop_ids, deaths
):
    options = params(stop=stops, min_tokens=min_tokens, include_stop_str_in_output=include)
    undisturbed = run_with_stops(tokens, options, stop_ids=stop_ids)

    assert run_with_stops(tokens, options, stop_ids=stop_ids, dies_before=deaths) == undisturbed
    assert undisturbed[-1].finish_reason is not None
    if isinstance(undisturbed[-1].stop_reason, str):
        assert len(undisturbed) > min_tokens or undisturbed[-1].tokens == (tokens[-1],)


def make_answer(options):
    return Answer(
        "a", [0], options, TOKENIZER, seed=0, arrival_s=0.0, prompt=None, fingerprint=""
    )  # fmt: skip


@given(
    tokens=TOKENS,
    stops=STOPS,
    include=st.booleans(),
    asks=st.sets(st.integers(0, 30)),
    stop_ids=st.sampled_from([(), (2,), (28,)]),
    completes=st.booleans(),
)
def test_an_answer_is_the_same_however_often_it_is_asked(tokens, stops, include, asks, stop_ids, completes):
    options = params(stop=stops, include_stop_str_in_output=include)
    if stops:
        deltas = run_with_stops(tokens, options, stop_ids=stop_ids)
    else:
        ends = [i for i, token in enumerate(tokens) if token in stop_ids][:1] or [len(tokens) - 1]
        kept = tokens[: ends[0] + 1]
        reason = "stop" if kept[-1] in stop_ids else "length"
        deltas = [RequestDelta("a", (token,)) for token in kept[:-1]]
        by_id = reason == "stop"
        if completes:  # a grammar that is complete ends as a stop id does, and shows its last token
            reason = "stop"
        deltas.append(RequestDelta("a", (kept[-1],), finish_reason=reason, ends_with_stop_id=by_id))
    once, often, pieces, ids = make_answer(options), make_answer(options), [], []
    for count, delta in enumerate(deltas):
        once.take(0, delta, 0.0)
        often.take(0, delta, 0.0)
        if count in asks or delta is deltas[-1]:
            (output,) = often.news().outputs
            pieces.append(output.text)
            ids += output.token_ids
    (whole,) = once.news().outputs

    assert "".join(pieces) == whole.text
    assert ids == whole.token_ids == [token for delta in deltas for token in delta.tokens]
    assert once.finished
    assert not once.has_news
    if not stops:
        shown = ids[:-1] if deltas[-1].ends_with_stop_id and not include else ids
        assert whole.text == TOKENIZER.decode(shown)


def test_stops_count_from_the_token_after_min_tokens():
    text, seen = OutputText(TOKENIZER, params(stop=("b",), min_tokens=2)), []
    for token in (0, 1, 0, 1):
        text.feed(token)
        seen.append((text.take(), text.stop))

    assert seen == [("a", None), ("b", None), ("a", None), ("", "b")]


def test_special_tokens_are_text_only_when_asked_for():
    for skip, want in ((True, "ab"), (False, "a<end>b")):
        answer = make_answer(params(skip_special_tokens=skip))
        answer.take(0, RequestDelta("a", (0, 27, 1), finish_reason="length"), 0.0)

        assert answer.news().outputs[0].text == want


def test_half_a_character_at_the_end_is_shown_as_such():
    answer, texts = make_answer(params()), []
    for delta in (RequestDelta("a", (0,)), RequestDelta("a", (28,), finish_reason="length")):
        answer.take(0, delta, 0.0)
        texts.append(answer.news().outputs[0].text)

    assert texts == ["a", "\ufffd"]


def test_an_answer_knows_when_it_began_whatever_a_replay_says_later():
    answer = make_answer(params())
    answer.take(0, RequestDelta("a", (0,), num_cached_tokens=64, first_scheduled_s=1.0), 2.0)
    gap_s = answer.take(0, RequestDelta("a", (0,), num_cached_tokens=0, first_scheduled_s=7.0), 9.0)

    assert gap_s == 7.0
    assert answer.metrics.first_scheduled_s == 1.0
    assert (answer.metrics.first_token_s, answer.metrics.last_token_s) == (2.0, 9.0)
    assert answer.metrics.num_cached_tokens == 64
