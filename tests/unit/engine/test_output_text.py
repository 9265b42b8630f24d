"""OutputText and StopFinder: one text, however it is fed, and two sides that agree."""

from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.model import make_request
from tests.fakes.tokenizer import make_tokenizer

from penstock.engine.output_text import OutputText, StopFinder
from penstock.request import SamplingParams

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


@given(tokens=TOKENS, stops=STOPS, include=st.booleans())
def test_pieces_join_to_the_whole_text_up_to_a_stop(tokens, stops, include):
    text = OutputText(TOKENIZER, params(stop=stops, include_stop_str_in_output=include))
    pieces = []
    for token in tokens:
        pieces.append(text.feed(token))
        if text.stop is not None:
            break
    pieces.append(text.finish())
    got = "".join(pieces)

    if text.stop is None:
        assert (got, None) == whole_text(tokens, stops, include)
    else:
        used = tokens[: len(pieces) - 1]
        assert got == whole_text(used, (text.stop,), include)[0]
        assert text.stop in TOKENIZER.decode(used)
    if not include:
        assert not any(stop in got for stop in stops)


@given(tokens=TOKENS, stops=STOPS.filter(bool), min_tokens=st.integers(0, 4), cut=st.integers(0, 29))
def test_the_engine_finds_what_the_face_finds_also_after_a_resume(tokens, stops, min_tokens, cut):
    options = params(stop=stops, min_tokens=min_tokens)
    face, finder = OutputText(TOKENIZER, options), StopFinder(TOKENIZER)
    request = make_request("a", [0])
    request.params = options
    for count, token in enumerate(tokens):
        if count == cut:
            finder.forget("a")  # a new engine process
        request.append(token)
        face.feed(token)

        assert finder(request) == face.stop
        if face.stop is not None:
            assert count >= min_tokens
            break


def test_stops_count_from_the_token_after_min_tokens():
    text = OutputText(TOKENIZER, params(stop=("b",), min_tokens=2))

    assert [(text.feed(token), text.stop) for token in (0, 1, 0, 1)] == [
        ("a", None),
        ("b", None),
        ("a", None),
        ("", "b"),
    ]


def test_special_tokens_are_text_only_when_asked_for():
    for skip, want in ((True, "ab"), (False, "a<end>b")):
        text = OutputText(TOKENIZER, params(skip_special_tokens=skip))

        assert "".join([*map(text.feed, [0, 27, 1]), text.finish()]) == want


def test_half_a_character_at_the_end_is_shown_as_such():
    text = OutputText(TOKENIZER, params())

    assert [text.feed(0), text.feed(28), text.finish()] == ["a", "", "\ufffd"]
