"""A checkpoint's tokenizer.json, through the `tokenizers` library: BPE, Unigram, WordPiece.

Called by the engine's faces. Refuses a tokenizer that is damaged or does not fit the model; never runs code
from a file. tokenizer.json alone decides what is added to a text (BOS, CLS ...).
"""

import re
import secrets
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Library

from penstock.errors import InvalidRequestError, ModelLoadError
from penstock.text.tokenizer_file import check_tokenizer, read_json

# Put into the special-token texts of user content before a template is rendered, so that they stay text. One
# that users write themselves is doubled.
MARK = "\ue0f0"
# Of these one is in what the library says when it panics for want of memory.
OUT_OF_MEMORY = ("memory", "pointer is null", "poisoned")
BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def _byte_alphabet() -> dict[str, int]:
    """How byte-level tokenizers spell bytes: printable Latin-1 as itself, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


BYTE_OF = _byte_alphabet()


class Tokenizer:
    """Text to ids and back. `config` is tokenizer_config.json; special tokens in text become their ids."""

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self._path = path
        try:
            self._library = Library.from_file(str(path))
        except MemoryError:
            raise
        except Exception as error:  # the library raises bare Exception for every kind of bad file
            line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelLoadError(
                "bad_tokenizer", f"{path.name}: refused by the tokenizers library ({line})."
            ) from None
        self._library.no_padding()
        self._library.no_truncation()  # nothing is ever cut silently
        self._bytes_of: dict[int, bytes] = {}
        self.config = config
        self.bos_token = self._named(config, "bos_token")
        self.eos_token = self._named(config, "eos_token")

    @classmethod
    def load(cls, folder: Path, vocab_size: int) -> "Tokenizer":
        """The tokenizer of a checkpoint folder, whose embedding has `vocab_size` rows."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ModelLoadError(
                "bad_tokenizer",
                f"{folder.name}: no tokenizer.json; convert the tokenizer with transformers and add it.",
            )
        config_path = folder / "tokenizer_config.json"
        config = read_json(config_path) if config_path.is_file() else {}
        check_tokenizer(read_json(path))
        tokenizer = cls(path, config)
        if (highest := tokenizer.vocab_size) > vocab_size:
            raise ModelLoadError(
                "tokenizer_mismatch",
                f"tokenizer.json has ids up to {highest - 1:,}, the embedding {vocab_size:,} rows; "
                f"tokenizer and weights belong to different models.",
            )
        tokenizer.encode("def f(x1):", add_special=False)  # what the library builds at first use is there
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
        return tuple(sorted(set(self._specials.values()), key=lambda text: (-len(text), text)))

    @property
    def special_ids(self) -> Mapping[int, str]:
        """Ids of all special tokens, with their texts."""
        return self._specials

    def token_spelling(self, token_id: int) -> str:
        """The token as the file spells it; empty for an id without one."""
        return self._library.id_to_token(token_id) or ""

    @cached_property
    def has_metaspace(self) -> bool:
        """Whether texts are spelled as SentencePiece does: U+2581 for a space, <0x0A> for a byte."""
        kinds = str(self._library.decoder)
        return "\u2581" in kinds and "WordPiece" not in kinds

    @cached_property
    def _specials(self) -> dict[int, str]:
        added = self._library.get_added_tokens_decoder()
        return {token_id: token.content for token_id, token in added.items() if token.special}

    @cached_property
    def _byte_ids(self) -> frozenset[int]:
        vocabulary = self._library.get_vocab(with_added_tokens=False)
        return frozenset(token_id for token, token_id in vocabulary.items() if BYTE_TOKEN.fullmatch(token))

    @cached_property
    def anchor(self) -> tuple[int, str] | None:
        """(id, its text) of a token that is a letter alone, for decoding ids that stand within a text."""
        for letter in "aeiotnsrhl":
            for token in (letter, f"\u2581{letter}", f"\u0120{letter}"):
                token_id = self.token_id(token)
                if token_id is None or token_id in self._specials:
                    continue
                text, doubled = self.decode([token_id]), self.decode([token_id, token_id])
                if text and doubled.startswith(text):
                    return token_id, text
        return None

    @cached_property
    def is_byte_level(self) -> bool:
        """Whether a text is no more than the bytes of its tokens, one after the other (GPT-2's spelling)."""
        return type(self._library.decoder).__name__ == "ByteLevel"

    def token_bytes(self, token_id: int) -> bytes:
        """What a token of a byte-level tokenizer stands for; one not spelled in its alphabet is itself."""
        found = self._bytes_of.get(token_id)
        if found is None:
            token: str = self._library.id_to_token(token_id) or ""
            if all(letter in BYTE_OF for letter in token):
                found = bytes(BYTE_OF[letter] for letter in token)
            else:
                found = token.encode()
            self._bytes_of[token_id] = found
        return found

    def is_byte(self, token_id: int) -> bool:
        """Whether the token is one byte of a character, as SentencePiece spells what it has no token for."""
        return token_id in self._byte_ids

    def is_shown(self, token_id: int, *, skip_special: bool = True) -> bool:
        """False for an id without a token and for a special one that is skipped; decoders see neither."""
        if skip_special and token_id in self._specials:
            return False
        return token_id >= 0 and self._library.id_to_token(token_id) is not None

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        """Ids of `text`. `add_special`: with what the tokenizer's post-processor adds (BOS, CLS ...)."""
        return list(self._encode(self._library, text, add_special).ids)

    def encode_rendered(self, text: str) -> list[int]:
        """Ids of a rendered chat template, which holds its own specials; marked specials are users' text.

        The ids are those of the text without marks, where the marked specials are ordinary characters.
        """
        if MARK not in text:
            return self.encode(text, add_special=False)
        pieces: list[str] = []
        special_ids: list[int] = []
        plain, stand_in, stand_in_id = self._plain
        at = 0
        encoding = self._encode(self._library, text, add_special=False)
        for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token_id in self._specials and text[start:end].strip() == self._specials[token_id].strip():
                pieces += [_unmarked(text[at:start]), stand_in]
                special_ids.append(token_id)
                at = end
        pieces.append(_unmarked(text[at:]))
        specials = iter(special_ids)
        ids = self._encode(plain, "".join(pieces), add_special=False).ids
        return [next(specials) if token_id == stand_in_id else token_id for token_id in ids]

    def mark_specials(self, content: str) -> str:
        """`content` with every special token's text marked, so that `encode_rendered` keeps it text."""
        if self._special_pattern is None:
            return content
        return self._special_pattern.sub(_marked, content)

    @cached_property
    def _special_pattern(self) -> re.Pattern[str] | None:
        texts = [re.escape(text) for text in self.special_tokens if text]
        return re.compile("|".join([MARK, *texts])) if texts else None

    @cached_property
    def _plain(self) -> tuple[Library, str, int]:
        """The same vocabulary with special tokens read as text, and a token that stands for a special."""
        library = Library.from_file(str(self._path))
        library.no_truncation()
        library.no_padding()
        library.encode_special_tokens = True
        stand_in = f"{MARK}{secrets.token_hex(16)}"  # not to be guessed, so that nobody writes it
        library.add_tokens([AddedToken(stand_in, normalized=False, special=False)])
        stand_in_id = library.token_to_id(stand_in)
        assert stand_in_id is not None, "the library takes new tokens"
        return library, stand_in, stand_in_id

    @staticmethod
    def _encode(library: Library, text: str, add_special: bool) -> Any:  # Any: the library is untyped
        try:
            return library.encode(text, add_special_tokens=add_special)
        except (UnicodeEncodeError, TypeError):  # the latter is what the library makes of it
            why = "holds half of a surrogate pair, which is no character; send valid Unicode"
        except BaseException as error:
            if type(error).__name__ != "PanicException":
                raise
            if any(word in str(error) for word in OUT_OF_MEMORY):
                raise MemoryError("no memory to tokenize this text") from None
            # else a pattern of the tokenizer ran out of its retries
            why = "is more than the tokenizer's patterns can match; send another"
        raise InvalidRequestError(f"the prompt {why}.", param="prompt")

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        text: str = self._library.decode(list(ids), skip_special_tokens=skip_special)
        return text


def _marked(found: re.Match[str]) -> str:
    text = found.group()
    return MARK + MARK if text == MARK else text[0] + MARK + text[1:]


def _unmarked(text: str) -> str:
    """`text` as it was: of a run of marks, an odd one marks a special, the others are doubled."""
    return re.sub(f"{MARK}+", lambda run: MARK * (len(run.group()) // 2), text)
