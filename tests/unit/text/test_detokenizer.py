from pathlib import Path

import pytest

from penstock.text.detokenizer import KEPT_WINDOW, MAX_WINDOW, Detokenizer
from penstock.text.tokenizer import Tokenizer

TOKENIZERS = Path(__file__).parents[2] / "fixtures" / "tokenizers"
NAMES = sorted(path.name for path in TOKENIZERS.iterdir() if path.is_dir())


def load(name: str) -> Tokenizer:
    return Tokenizer.load(TOKENIZERS / name, 10_000)


def pieces(tokenizer: Tokenizer, ids: list[int], *, skip_special: bool = True) -> list[str]:
    stream = Detokenizer(tokenizer, skip_special=skip_special)
    return [*(stream.feed([token_id]) for token_id in ids), stream.flush()]


@pytest.mark.parametrize("name", NAMES)
def test_a_plain_text_comes_out_with_every_token(name: str) -> None:
    tokenizer = load(name)
    ids = tokenizer.encode("the cat and the dog ran", add_special=False)
    out = pieces(tokenizer, ids)

    assert "".join(out) == tokenizer.decode(ids)
    assert out[-1] == ""
    assert all(out[:-1])


@pytest.mark.parametrize("name", ["byte_level_gpt2", "sentencepiece_llama2"])
def test_a_character_of_several_tokens_comes_out_whole(name: str) -> None:
    tokenizer = load(name)
    ids = tokenizer.encode("a\U0001f99cb", add_special=False)
    out = pieces(tokenizer, ids)

    assert "\U0001f99c" in "".join(out)
    assert not any("\ufffd" in piece for piece in out)


def test_bytes_that_never_become_a_character_come_out_at_the_end() -> None:
    tokenizer = load("byte_level_gpt2")
    ids = tokenizer.encode("a\U0001f99c", add_special=False)[:-1]
    out = pieces(tokenizer, ids)

    assert out[-1] == "\ufffd"
    assert "".join(out) == tokenizer.decode(ids)


def test_a_run_of_sentencepiece_bytes_waits_for_its_end() -> None:
    """C3 A9 is a letter; with 80 after it, the decoder makes three replacement characters of the run."""
    tokenizer = load("sentencepiece_llama2")
    first, second, third, letter = (tokenizer.token_id(t) for t in ("<0xC3>", "<0xA9>", "<0x80>", "a"))
    assert None not in (first, second, third, letter)

    assert pieces(tokenizer, [letter, first, second, letter]) == ["a", "", "", "\u00e9a", ""]  # type: ignore[list-item]
    assert pieces(tokenizer, [letter, first, second, third]) == ["a", "", "", "", "\ufffd" * 3]  # type: ignore[list-item]


def test_skipped_specials_and_ids_without_a_token_say_nothing() -> None:
    tokenizer = load("byte_level_llama3")
    bos, letter = tokenizer.bos_token_id, tokenizer.token_id("a")
    assert bos is not None
    assert letter is not None

    assert pieces(tokenizer, [bos, 9999, letter, bos]) == ["", "", "a", "", ""]
    assert "".join(pieces(tokenizer, [bos, letter], skip_special=False)) == "<|begin_of_text|>a"


@pytest.mark.parametrize("name", NAMES)
def test_the_work_for_one_token_does_not_grow_with_the_text(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load(name)
    longest = 0
    decode = tokenizer.decode

    def counted(ids: list[int], *, skip_special: bool = True) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return decode(ids, skip_special=skip_special)

    monkeypatch.setattr(tokenizer, "decode", counted)
    ids = tokenizer.encode("one two, three don't. " * 40, add_special=False)
    assert "".join(pieces(tokenizer, ids)) == decode(ids)

    if tokenizer.is_byte_level:
        assert longest == 0  # bytes need no second look
    else:
        assert KEPT_WINDOW < longest <= MAX_WINDOW + 2
