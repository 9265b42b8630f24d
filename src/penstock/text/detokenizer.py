"""Ids to text, piece by piece: what was emitted is never taken back, and all pieces join to the whole."""

import codecs
from collections.abc import Iterable

from penstock.text.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"
MAX_WINDOW = 24  # ids decoded again for each new one
UTF8 = codecs.getincrementaldecoder("utf-8")
KEPT_WINDOW = 8  # no character is made of more ids than its four bytes


class Detokenizer:
    """One stream. Text that a later id may still change is held back until it cannot.

    After `flush`, the pieces together are `tokenizer.decode(all ids)`, the replacement character included
    where the bytes never became a character. Held back are: the last character while its bytes may be
    incomplete, and a run of SentencePiece byte tokens, which becomes characters only as a whole.

    A byte-level tokenizer's ids are bytes, decoded one after the other. Of the others a window of the last
    ids is decoded again for each new one. Where ids were cut off before it, a letter stands for them, since
    decoders treat the first token of a text differently.
    """

    __slots__ = ("_bytes", "_is_cut", "_num_shown", "_skip_special", "_tokenizer", "_window")

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._bytes = UTF8(errors="replace") if tokenizer.is_byte_level else None
        self._window: list[int] = []
        self._is_cut = False  # ids before the window have been emitted
        self._num_shown = 0  # characters of the window's text that have been emitted

    def feed(self, ids: Iterable[int]) -> str:
        """The text that became certain with these ids."""
        pieces: list[str] = []
        for token_id in ids:
            if not self._tokenizer.is_shown(token_id, skip_special=self._skip_special):
                continue
            if self._bytes is not None:
                pieces.append(self._bytes.decode(self._tokenizer.token_bytes(token_id)))
                continue
            self._window.append(token_id)
            if self._tokenizer.is_byte(token_id):
                continue
            text = self._text(self._window, is_cut=self._is_cut)
            end = len(text) - 1 if text.endswith(REPLACEMENT) else len(text)
            if end > self._num_shown:
                pieces.append(text[self._num_shown : end])
                self._num_shown = end
            if len(self._window) > MAX_WINDOW:
                self._shrink(text)
        return "".join(pieces)

    def flush(self) -> str:
        """What is left at the end: an incomplete character as the replacement character."""
        if self._bytes is not None:
            return self._bytes.decode(b"", final=True)
        rest = self._text(self._window, is_cut=self._is_cut)[self._num_shown :]
        self._num_shown += len(rest)
        return rest

    def _text(self, ids: list[int], *, is_cut: bool) -> str:
        anchor = self._tokenizer.anchor if is_cut else None
        if anchor is None:
            return self._tokenizer.decode(ids, skip_special=self._skip_special)
        token_id, shown = anchor
        return self._tokenizer.decode([token_id, *ids], skip_special=self._skip_special)[len(shown) :]

    def _shrink(self, text: str) -> None:
        """Cut off what no later id can change, if the text falls in two there."""
        at = len(self._window) - KEPT_WINDOW
        if self._tokenizer.anchor is None or self._tokenizer.is_byte(self._window[at]):
            return
        before = self._text(self._window[:at], is_cut=self._is_cut)
        after = self._text(self._window[at:], is_cut=True)
        if before and before + after == text and len(before) <= self._num_shown:
            del self._window[:at]
            self._is_cut = True
            self._num_shown -= len(before)
