"""A tokenizer without files: ids 0-25 are letters, 26 a space, 27 <end>, 28 and 29 the two bytes of an é."""

from collections.abc import Sequence

LETTERS = "abcdefghijklmnopqrstuvwxyz "
END = 27
HALVES = {28: b"\xc3", 29: b"\xa9"}
VOCAB_SIZE = 30


class FakeStream:
    def __init__(self, tokenizer: "FakeTokenizer", skip_special: bool) -> None:
        self._tokenizer, self._skip_special, self._ids, self._given = tokenizer, skip_special, [], 0

    def step(self, token_id: int) -> str | None:
        self._ids.append(token_id)
        text = self._tokenizer.decode(self._ids, skip_special=self._skip_special)
        if text.endswith("\ufffd"):
            return None
        piece, self._given = text[self._given :], len(text)
        return piece


class FakeTokenizer:
    vocab_size = VOCAB_SIZE
    bos_token, eos_token = None, "<end>"
    bos_token_id, eos_token_id = None, END
    special_tokens = ("<end>",)

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        ids = []
        while text:
            if text.startswith("<end>"):
                ids.append(END)
                text = text[5:]
            else:
                ids.append(LETTERS.index(text[0]))
                text = text[1:]
        return ids

    def encode_rendered(self, text: str) -> list[int]:
        return self.encode(text.replace("<\ue0f0end>", "aaaaa"))

    def mark_specials(self, content: str) -> str:
        return content.replace("<end>", "<\ue0f0end>")

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        data = b""
        for token in ids:
            if token == END:
                data += b"" if skip_special else b"<end>"
            else:
                data += HALVES[token] if token in HALVES else LETTERS[token].encode()
        return data.decode(errors="replace")

    def decode_stream(self, *, skip_special: bool = True) -> FakeStream:
        return FakeStream(self, skip_special)

    def token_text(self, token_id: int) -> str:
        return self.decode([token_id], skip_special=False)
