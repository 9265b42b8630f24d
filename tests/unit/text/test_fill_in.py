"""Prompts for filling in: the marks in their order, and texts that are never marks themselves."""

from pathlib import Path

import pytest

from penstock.engine.locate import embedded_models
from penstock.errors import InvalidRequestError
from penstock.text.fill_in import fill_in_prompt
from penstock.text.tokenizer import Tokenizer

TOKENIZERS = Path(__file__).parents[2] / "fixtures" / "tokenizers"
TINY = Tokenizer.load(embedded_models()["penstock-tiny"], 8192)
BEFORE, AFTER, MIDDLE = (TINY.token_id(f"<|fim_{name}|>") for name in ("prefix", "suffix", "middle"))


def plain(text: str) -> list[int]:
    return TINY.encode(text, add_special=False)


def test_the_model_reads_prefix_then_suffix_and_writes_after_the_middle_mark() -> None:
    ids = fill_in_prompt("def f(x):\n", "    return y\n", TINY)
    ids = ids[ids.index(BEFORE) :]

    assert None not in (BEFORE, AFTER, MIDDLE)
    assert ids == [BEFORE, *plain("def f(x):\n"), AFTER, *plain("    return y\n"), MIDDLE]


def test_a_mark_that_is_spelled_in_a_text_is_text() -> None:
    ids = fill_in_prompt("a<|fim_middle|>", "<|fim_suffix|>b", TINY)

    assert [ids.count(mark) for mark in (BEFORE, AFTER, MIDDLE)] == [1, 1, 1]
    assert ids[-1] == MIDDLE


def test_a_model_without_the_marks_is_refused_by_the_parameters_name() -> None:
    with pytest.raises(InvalidRequestError) as refused:
        fill_in_prompt("a", "b", Tokenizer.load(TOKENIZERS / "byte_level_qwen2", 10_000))

    assert (refused.value.param, refused.value.code) == ("suffix", "unsupported_parameter")
