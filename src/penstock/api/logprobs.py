"""Logprobs in OpenAI's two shapes: per token for chats, in parallel lists for completions."""

from collections.abc import Iterable, Mapping, Sequence

from penstock.api.shapes import TextLogprobs, TokenLogprob, TopLogprob
from penstock.request import Logprob
from penstock.text.tokenizer import Tokenizer

Row = Mapping[int, Logprob]


class TokenNames:
    """How a token is written in an answer: its text, or token_id:N where that was asked for."""

    def __init__(self, tokenizer: Tokenizer, *, as_ids: bool, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._as_ids = as_ids

    def name(self, token: int, decoded: str) -> str:
        return f"token_id:{token}" if self._as_ids else decoded

    def num_shown(self, token: int, text: str) -> int:
        """Characters of it in the answer's text; special tokens are not shown."""
        return len(text) if self._tokenizer.is_shown(token, skip_special=self._skip_special) else 0

    def bare(self, token: int) -> str:
        return self._tokenizer.token_text(token)

    def bytes_of(self, token: int, decoded: str) -> list[int]:
        """A token may be part of a character: its text is then a mark, its bytes are what it is."""
        if self._tokenizer.is_byte_level:
            return list(self._tokenizer.token_bytes(token))
        return list(decoded.encode())


def chat_logprobs(
    tokens: Iterable[int], rows: Iterable[Row], num_top: int, names: TokenNames
) -> list[TokenLogprob]:
    """One entry per token, each with the `num_top` most likely of its position."""
    made = []
    for token, row in zip(tokens, rows, strict=True):
        drawn = row[token]
        top = [
            TopLogprob(names.name(t, p.decoded_token), p.logprob, names.bytes_of(t, p.decoded_token))
            for t, p in _top(row, num_top)
        ]
        made.append(
            TokenLogprob(
                names.name(token, drawn.decoded_token),
                drawn.logprob,
                names.bytes_of(token, drawn.decoded_token),
                top,
            )
        )
    return made


def text_logprobs(
    tokens: Sequence[int], rows: Sequence[Row | None], num_top: int, names: TokenNames, *, offset: int = 0
) -> TextLogprobs:
    """Parallel lists; a token without a row (the first of an echoed prompt) has null. Offsets: characters."""
    texts: list[str] = []
    drawn: list[float | None] = []
    top: list[dict[str, float] | None] = []
    offsets: list[int] = []
    for token, row in zip(tokens, rows, strict=True):
        if row is None:
            text = names.bare(token)
            drawn.append(None)
            top.append(None)
        else:
            text = row[token].decoded_token
            drawn.append(row[token].logprob)
            best = dict(_top(row, num_top)) | {token: row[token]}
            top.append({names.name(t, p.decoded_token): p.logprob for t, p in best.items()})
        texts.append(names.name(token, text))
        offsets.append(offset)
        offset += names.num_shown(token, text)
    return TextLogprobs(texts, drawn, top, offsets)


def _top(row: Row, count: int) -> list[tuple[int, Logprob]]:
    ranked = sorted(row.items(), key=lambda entry: (entry[1].rank, entry[0]))
    return [entry for entry in ranked if entry[1].rank <= count][:count]
