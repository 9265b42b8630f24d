"""A checkpoint's tokenizer.json, through the `tokenizers` library: byte-level BPE, SentencePiece BPE, Unigram, WordPiece.

Called by the engine's faces. Refuses a tokenizer that does not fit the model; never runs code from a file.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Library
from tokenizers.decoders import DecodeStream

from penstock.errors import ModelLoadError

# Inserted into special-token texts of user content before a template is rendered, so that they stay text.
MARK = "\ue0f0"


def _read_json(path: Path, code: str) -> dict[str, Any]:  # Any: foreign JSON
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadError(
            code, f"{path.name}: cannot be read as JSON ({error}); download it again."
        ) from None
    if not isinstance(value, dict):
        raise ModelLoadError(code, f"{path.name}: is not a JSON object; download it again.")
    return value


class Tokenizer:
    """Text to ids and back. `config` is tokenizer_config.json; special tokens in text become their ids."""

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self._path = path
        try:
            self._library = Library.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for every kind of bad file
            line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelLoadError(
                "bad_tokenizer", f"{path.name}: refused by the tokenizers library ({line})."
            ) from None
        self._library.no_padding()
        self._library.no_truncation()  # nothing is ever cut silently
        self.config = config
        self.bos_token = self._named(config, "bos_token")
        self.eos_token = self._named(config, "eos_token")
        self._adds_bos = config.get("add_bos_token")

    @classmethod
    def load(cls, folder: Path, vocab_size: int) -> "Tokenizer":
        """The tokenizer of a checkpoint folder, whose embedding has `vocab_size` rows."""
        path = folder / "tokenizer.json"
        if not path.exists():
            raise ModelLoadError(
                "bad_tokenizer",
                f"{folder.name}: no tokenizer.json; convert the tokenizer with transformers and add it.",
            )
        config_path = folder / "tokenizer_config.json"
        config = _read_json(config_path, "bad_tokenizer") if config_path.exists() else {}
        _read_json(path, "bad_tokenizer")
        tokenizer = cls(path, config)
        if (highest := tokenizer.vocab_size) > vocab_size:
            raise ModelLoadError(
                "tokenizer_mismatch",
                f"tokenizer.json has ids up to {highest - 1:,}, the embedding {vocab_size:,} rows; "
                f"tokenizer and weights belong to different models.",
            )
        return tokenizer

    @staticmethod
    def _named(config: Mapping[str, Any], key: str) -> str | None:
        value = config.get(key)
        if isinstance(value, Mapping):
            value = value.get("content")
        return value if isinstance(value, str) else None

    @property
    def vocab_size(self) -> int:
        """One more than the highest id."""
        return max(self._library.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @property
    def bos_token_id(self) -> int | None:
        return None if self.bos_token is None else self.token_id(self.bos_token)

    @property
    def eos_token_id(self) -> int | None:
        return None if self.eos_token is None else self.token_id(self.eos_token)

    def token_id(self, token: str) -> int | None:
        found: int | None = self._library.token_to_id(token)
        return found

    def token_text(self, token_id: int) -> str:
        """What one id stands for, alone; specials included."""
        text: str = self._library.decode([token_id], skip_special_tokens=False)
        return text

    @cached_property
    def special_tokens(self) -> tuple[str, ...]:
        """Texts of all special tokens, longest first."""
        added = self._library.get_added_tokens_decoder().values()
        return tuple(sorted((t.content for t in added if t.special), key=len, reverse=True))

    @cached_property
    def _plain(self) -> Library:
        """The same vocabulary, with special tokens read as ordinary text."""
        library = Library.from_file(str(self._path))
        library.no_truncation()
        library.no_padding()
        library.encode_special_tokens = True
        return library

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        """Ids of `text`. `add_special`: with what the tokenizer's post-processor adds (BOS, CLS ...)."""
        ids: list[int] = self._library.encode(text, add_special_tokens=add_special).ids
        if (
            add_special
            and self._adds_bos
            and self.bos_token_id is not None
            and ids[:1] != [self.bos_token_id]
        ):
            ids.insert(0, self.bos_token_id)
        return ids

    def encode_rendered(self, text: str) -> list[int]:
        """Ids of a rendered chat template, which holds its own specials; marked specials are users' text."""
        if MARK not in text:
            return self.encode(text, add_special=False)
        ids: list[int] = []
        at = 0
        while (mark := text.find(MARK, at)) >= 0:
            start = mark - 1  # the mark stands after the first character of a special token's text
            end = mark + 1
            for special in self.special_tokens:
                if text.startswith(special[1:], end) and text[start] == special[0]:
                    end += len(special) - 1
                    break
            ids += self.encode(text[at:start], add_special=False)
            plain = text[start:end].replace(MARK, "")
            ids += self._plain.encode(plain, add_special_tokens=False).ids
            at = end
        return ids + self.encode(text[at:], add_special=False)

    def mark_specials(self, content: str) -> str:
        """`content` with every special token's text marked, so that `encode_rendered` keeps it text."""
        content = content.replace(MARK, "")
        for special in self.special_tokens:
            if special and special in content:
                content = content.replace(special, special[0] + MARK + special[1:])
        return content

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        text: str = self._library.decode(list(ids), skip_special_tokens=skip_special)
        return text

    def decode_stream(self, *, skip_special: bool = True) -> "TokenStream":
        return TokenStream(self._library, skip_special)


class TokenStream:
    """One stream of ids to text; `step` returns None while a character is incomplete."""

    __slots__ = ("_library", "_stream")

    def __init__(self, library: Library, skip_special: bool) -> None:
        self._library = library
        self._stream = DecodeStream(skip_special_tokens=skip_special)

    def step(self, token_id: int) -> str | None:
        text: str | None = self._stream.step(self._library, token_id)
        return text
