"""Whatever ids come in whatever pieces: the streamed text is the whole text, and nothing is taken back."""

from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.text.detokenizer import Detokenizer
from penstock.text.stop import StopStrings
from penstock.text.tokenizer import Tokenizer

TOKENIZERS = Path(__file__).parents[1] / "fixtures" / "tokenizers"
NAMES = sorted(path.name for path in TOKENIZERS.iterdir() if path.is_dir())
LOADED = {name: Tokenizer.load(TOKENIZERS / name, 10_000) for name in NAMES}


def chunks(draw: st.DrawFn, values: list[int] | str) -> list[list[int]] | list[str]:
    """`values` in random pieces, empty ones included."""
    cuts = sorted(draw(st.lists(st.integers(0, len(values)), max_size=8)))
    return [values[a:b] for a, b in zip([0, *cuts], [*cuts, len(values)], strict=True)]  # type: ignore[return-value]


@st.composite
def token_chunks(draw: st.DrawFn, tokenizer: Tokenizer) -> list[list[int]]:
    """Any ids, many of them specials, bytes, and ids without a token."""
    special = [i for text in tokenizer.special_tokens if (i := tokenizer.token_id(text)) is not None]
    odd = [i for i in range(tokenizer.vocab_size) if tokenizer.is_byte(i)] or list(range(256))
    one = st.integers(0, tokenizer.vocab_size + 3) | st.sampled_from(special) | st.sampled_from(odd)
    return chunks(draw, draw(st.lists(one, max_size=80)))  # type: ignore[return-value]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("skip_special", [True, False])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_pieces_of_a_stream_join_to_the_text_of_all_ids(
    name: str, skip_special: bool, data: st.DataObject
) -> None:
    tokenizer = LOADED[name]
    parts = data.draw(token_chunks(tokenizer))
    stream = Detokenizer(tokenizer, skip_special=skip_special)
    streamed = "".join([stream.feed(part) for part in parts])
    ids = [token_id for part in parts for token_id in part]
    whole = tokenizer.decode(ids, skip_special=skip_special)

    assert whole.startswith(streamed)
    assert streamed + stream.flush() == whole
    assert stream.flush() == ""


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=60))
def test_the_chunks_of_a_stream_do_not_change_what_has_come_out(name: str, text: str) -> None:
    tokenizer = LOADED[name]
    ids = tokenizer.encode(text)
    by_one, at_once = Detokenizer(tokenizer), Detokenizer(tokenizer)

    assert "".join([by_one.feed([token_id]) for token_id in ids]) == at_once.feed(ids)
    assert by_one.flush() == at_once.flush()


def first_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """By the definition: the shortest beginning of `text` that ends with a stop; the longest such stop."""
    for end in range(len(text) + 1):
        hits = [stop for stop in stops if text[:end].endswith(stop)]
        if hits:
            stop = max(hits, key=len)
            return text[: end - len(stop)], stop
    return text, None


@st.composite
def stop_cases(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    letters = st.text("ab\u00e9", max_size=30)
    stops = draw(st.lists(st.text("ab\u00e9", min_size=1, max_size=5), min_size=1, max_size=16, unique=True))
    return stops, chunks(draw, draw(letters))  # type: ignore[return-value]


@settings(max_examples=1000, deadline=None)
@given(case=stop_cases())
def test_streaming_stops_where_the_whole_text_stops_and_leaks_nothing(
    case: tuple[list[str], list[str]],
) -> None:
    stops, parts = case
    expected, expected_stop = first_stop("".join(parts), stops)
    stream, emitted, hit = StopStrings(stops), "", None
    for index, part in enumerate(parts):
        text, hit = stream.feed(part)
        emitted += text

        assert expected.startswith(emitted)
        if hit is not None:
            break
        held = "".join(parts[: index + 1])[len(emitted) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)  # no more is held than must be
    if hit is None:
        emitted += stream.flush()

    assert (emitted, hit) == (expected, expected_stop)


@settings(max_examples=200, deadline=None)
@given(case=stop_cases())
def test_an_included_stop_adds_itself_and_nothing_else(case: tuple[list[str], list[str]]) -> None:
    stops, parts = case
    expected, expected_stop = first_stop("".join(parts), stops)
    stream, emitted, hit = StopStrings(stops, include=True), "", None
    for part in parts:
        text, hit = stream.feed(part)
        emitted += text
        if hit is not None:
            break
    else:
        emitted += stream.flush()

    assert emitted == expected + (expected_stop or "")


def check_whole_streams(seed: int, count: int) -> None:
    """Ids to text to stops, in pieces and at once: what a stream says is what the whole answer says."""
    random = Random(seed)
    num_hits = 0
    for _ in range(count):
        tokenizer = LOADED[random.choice(NAMES)]
        letters = random.choice(("ab c", "aé🙂\u0301 x", "नमस्ते ab", "\n\t <>|/s"))
        ids = tokenizer.encode("".join(random.choices(letters, k=random.randrange(40))), add_special=False)
        ids += random.choices(range(tokenizer.vocab_size), k=random.randrange(6))
        random.shuffle(ids)
        whole = tokenizer.decode(ids)
        stops = [
            whole[at : at + random.randrange(1, 6)] or "a"
            for at in random.choices(range(len(whole) + 1), k=random.randrange(1, 5))
        ]
        expected, expected_stop = first_stop(whole, stops)
        texts, finder = Detokenizer(tokenizer), StopStrings(stops)
        streamed, hit = "", None
        cuts = sorted(random.choices(range(len(ids) + 1), k=random.randrange(6)))
        for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True):
            if hit is None:
                text, hit = finder.feed(texts.feed(ids[a:b]))
                streamed += text
        if hit is None:
            text, hit = finder.feed(texts.flush())
            streamed += text if hit is not None else text + finder.flush()

        assert (streamed, hit) == (expected, expected_stop), (ids, stops, cuts)
        num_hits += hit is not None
    assert num_hits > count // 4


def test_a_stream_says_what_the_whole_answer_says() -> None:
    check_whole_streams(1, 400)


@pytest.mark.slow
def test_10_000_streams_say_what_the_whole_answers_say() -> None:
    check_whole_streams(2, 10_000)


MIXED = st.text("<>|/s_[INST]endoftexi \n\ue0f0", max_size=30)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("unigram")])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_nothing_a_user_says_becomes_a_special_token(name: str, data: st.DataObject) -> None:
    """Unigram models have the texts of their specials as ordinary pieces; of those no text is safe."""
    tokenizer = LOADED[name]
    parts = data.draw(st.lists(st.sampled_from(tokenizer.special_tokens) | MIXED, max_size=6))
    said = "".join(parts)
    ids = tokenizer.encode_rendered(tokenizer.mark_specials(said))
    unknown = tokenizer.token_id("<unk>") if name != "wordpiece_bert" else tokenizer.token_id("[UNK]")
    special_ids = {tokenizer.token_id(text) for text in tokenizer.special_tokens} - {unknown}

    assert not special_ids & set(ids)
