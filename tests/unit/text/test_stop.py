import pytest

from penstock.text.stop import StopStrings


def run(stops: list[str], pieces: list[str], *, include: bool = False) -> tuple[list[str], str | None]:
    stop, emitted = StopStrings(stops, include=include), []
    for piece in pieces:
        text, hit = stop.feed(piece)
        emitted.append(text)
        if hit is not None:
            return emitted, hit
    return [*emitted, stop.flush()], None


def test_without_stops_everything_passes_at_once() -> None:
    assert run([], ["a", "b"]) == (["a", "b", ""], None)


def test_a_stop_across_pieces_never_leaks_its_beginning() -> None:
    assert run(["END"], ["abcE", "N", "D tail"]) == (["abc", "", ""], "END")


def test_a_beginning_that_comes_to_nothing_is_given_out_after_all() -> None:
    assert run(["END"], ["abE", "N", "x", "E"]) == (["ab", "", "ENx", "", "E"], None)


def test_a_stop_that_is_the_first_text_leaves_nothing() -> None:
    assert run(["Hi"], ["H", "i there"]) == (["", ""], "Hi")


def test_the_stop_that_is_complete_first_wins_in_whatever_pieces() -> None:
    assert run(["abcd", "bc"], ["abcd"]) == (["a"], "bc")
    assert run(["abcd", "bc"], ["a", "b", "c", "d"]) == (["", "", "a"], "bc")


def test_of_two_stops_complete_at_once_the_longer_wins() -> None:
    assert run(["c", "abc"], ["xabc"]) == (["x"], "abc")


def test_overlapping_beginnings_are_held_as_long_as_any_may_complete() -> None:
    assert run(["aab"], ["aaa", "b"]) == (["a", ""], "aab")


@pytest.mark.parametrize("pieces", [["xENDy"], ["xE", "ND", "y"], list("xENDy")])
def test_an_included_stop_ends_the_text(pieces: list[str]) -> None:
    emitted, hit = run(["END"], pieces, include=True)

    assert ("".join(emitted), hit) == ("xEND", "END")


def test_stops_of_several_code_units_are_whole_characters() -> None:
    assert run(["\U0001f600\u0301"], ["a\U0001f600", "\u0301b"]) == (["a", ""], "\U0001f600\u0301")


def test_an_empty_stop_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="admission"):
        StopStrings(["a", ""])
