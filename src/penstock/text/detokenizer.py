"""Ids to text, piece by piece: what was emitted is never taken back, and all pieces join to the whole."""

from collections.abc import Iterable

from penstock.text.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"


class Detokenizer:
    """One stream. Text whose last character may still change (half a UTF-8 sequence) is held back until it cannot.

    After `flush`, the pieces together are `tokenizer.decode(all ids)`, the replacement character included
    where the bytes never became a character.
    """

    __slots__ = ("_emitted", "_ids", "_skip_special", "_stream", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._stream = tokenizer.decode_stream(skip_special=skip_special)
        self._ids: list[int] = []
        self._emitted: list[str] = []

    def feed(self, ids: Iterable[int]) -> str:
        """The text that became certain with these ids."""
        pieces: list[str] = []
        for token_id in ids:
            self._ids.append(token_id)
            piece = self._stream.step(token_id)
            if piece:
                pieces.append(piece)
        text = "".join(pieces)
        if text:
            self._emitted.append(text)
        return text

    def flush(self) -> str:
        """What is left at the end: an incomplete character as the replacement character."""
        whole = self._tokenizer.decode(self._ids, skip_special=self._skip_special)
        emitted = "".join(self._emitted)
        rest = whole[len(emitted) :] if whole.startswith(emitted) else ""
        if rest:
            self._emitted.append(rest)
        return rest
