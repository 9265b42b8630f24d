"""Grammars to masks over tokens, through `llguidance`, under one fixed fuel.

Called by the engine, and by `grammar_worker`, which tries every grammar first where it can do no harm. What
the library says of a bad grammar becomes one line of ours; nothing that it does raises anything else.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import gbnf_to_lark
from numpy.typing import NDArray

from penstock.errors import GrammarLimitError, InvalidRequestError
from penstock.request import GrammarSpec
from penstock.text.grammar import JSON_SPACE
from penstock.text.grammar_wire import Vocabulary

Mask = NDArray[np.uint32]
Encode = Callable[[str], Sequence[int]]

# One fuel for all: what a grammar may cost to build, and each of its masks. A lexer state takes 1 to 2 kB, so
# that 32,000 of them stay within the 64 MiB that a grammar may take.
MAX_LEXER_STATES = 32_000
FUEL = LLParserLimits(
    max_items_in_row=2_000,
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=MAX_LEXER_STATES,
    max_grammar_size=500_000,
    verbose_errors=False,
)
MAX_BYTES = 64 << 20
BASE_BYTES = 4 << 20
BYTES_PER_TEXT_BYTE = 500  # 1,500 properties, 38 kB of text, take 13 MB (measured)
LIMIT_WORDS = ("fuel", "too large", "too complex", "too many", "too big", "limit", "exceeds")
MAX_MESSAGE_CHARS = 200


class GrammarMatcher:
    """Where one answer stands in its grammar. Advances by tokens; can be taken back; never raises."""

    __slots__ = ("_mask", "_matcher", "_size")

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._size = -(-vocab_size // 32)
        self._mask: Mask | None = None

    def mask(self) -> Mask:
        """The tokens that may come next, a bit each: [ceil(V/32)]. Not to be written to. All zero: none may.

        End-of-sequence ids are among them where the text so far is a whole one.
        """
        if self._mask is None:
            mask = np.zeros(self._size, np.uint32)
            self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
            if self._matcher.is_error():  # a limit was met: the library would allow the end, in mid-text
                mask[:] = 0
            self._mask = mask
        return self._mask

    def accept(self, tokens: Sequence[int]) -> int:
        """Advance by as many of `tokens` as the grammar allows: how many."""
        if self._matcher.is_error():
            return 0
        count = self._matcher.try_consume_tokens(list(tokens))
        if count:
            self._mask = None
        return count

    def roll_back(self, num_tokens: int) -> None:
        """Take back the latest tokens that were accepted."""
        if num_tokens:
            self._matcher.rollback(num_tokens)
            self._mask = None

    @property
    def is_complete(self) -> bool:
        """The text is whole and nothing may follow it."""
        return self._matcher.is_stopped() and self._matcher.is_accepting() and not self._matcher.is_error()

    @property
    def error(self) -> str:
        """Why the matcher gave up: a limit of its fuel, mostly. Empty: it has not."""
        return _line(self._matcher.get_error())


def most_bytes(spec: GrammarSpec) -> int:
    """What a compiled grammar may take: the worker's limit, and what the engine counts it for."""
    return min(MAX_BYTES, BASE_BYTES + BYTES_PER_TEXT_BYTE * len(spec.text))


class GrammarCompiler:
    """Compiles grammars for one vocabulary. One thread at a time.

    Every matcher is built anew: copies of one share the library's lexer, where what one has found counts
    against the fuel of the others, so that an answer could depend on its neighbours. `encode` spells a text
    as the model would; what it gives is checked against the tokens' bytes.
    """

    def __init__(self, vocabulary: Vocabulary, encode: Encode | None = None) -> None:
        self._vocab_size = len(vocabulary.tokens)
        self._tokenizer = LLTokenizer(
            TokenizerWrapper(_Speller(vocabulary, encode)),
            n_vocab=self._vocab_size,
            eos_token=list(vocabulary.eos_ids),
        )

    def compile(self, spec: GrammarSpec, *, param: str = "structured_outputs") -> GrammarMatcher:
        """A matcher at the beginning. InvalidRequestError: no grammar; GrammarLimitError: above the fuel."""
        try:
            matcher = LLMatcher(self._tokenizer, _source(spec), log_level=0, limits=FUEL)
        except (ValueError, TypeError, RecursionError) as error:
            raise InvalidRequestError(f"{param}: {_line(str(error))}; mend it.", param=param) from None
        if matcher.is_error():
            raise _refusal(matcher.get_error(), param)
        made = GrammarMatcher(matcher, self._vocab_size)
        mask = made.mask()
        if matcher.is_error() and not matcher.is_accepting():
            raise _refusal(matcher.get_error(), param)
        if not mask.any():
            raise InvalidRequestError(
                f"{param}: no text matches it, so that no answer could; mend it.", param=param
            )
        return made


class _Speller:
    """The tokenizer as the library wants it. It spells what a grammar leaves no choice about."""

    def __init__(self, vocabulary: Vocabulary, encode: Encode | None) -> None:
        self.eos_token_id = vocabulary.eos_ids[0] if vocabulary.eos_ids else 0
        self.bos_token_id = None
        self.tokens = list(vocabulary.tokens)
        self.special_token_ids = list(vocabulary.special_ids)
        self._encode = encode
        specials = set(vocabulary.special_ids)
        self._ids = {
            token: token_id
            for token_id, token in reversed(list(enumerate(vocabulary.tokens)))
            if token and token_id not in specials
        }
        self._longest = max(map(len, self._ids), default=1)

    def __call__(self, text: bytes) -> list[int]:
        if self._encode is not None:
            try:
                ids = list(self._encode(text.decode("utf-8")))
            except (UnicodeDecodeError, InvalidRequestError):
                ids = []
            if b"".join(self.tokens[token_id] for token_id in ids) == text:
                return ids
        return self._greedy(text)

    def _greedy(self, text: bytes) -> list[int]:
        """The longest token first; up to what no token spells."""
        ids: list[int] = []
        at = 0
        while at < len(text):
            for end in range(min(len(text), at + self._longest), at, -1):
                token_id = self._ids.get(text[at:end])
                if token_id is not None:
                    ids.append(token_id)
                    at = end
                    break
            else:
                break
        return ids


def _source(spec: GrammarSpec) -> str:
    """The library's own form of a grammar."""
    if spec.kind == "regex":
        return LLMatcher.grammar_from_regex(spec.text)
    if spec.kind == "choice":
        choices = [json.dumps(choice, ensure_ascii=False) for choice in json.loads(spec.text)]
        return LLMatcher.grammar_from_lark("start: " + " | ".join(choices))
    if spec.kind == "lark":
        return LLMatcher.grammar_from_lark(spec.text)
    if spec.kind == "ebnf":
        return LLMatcher.grammar_from_lark(_lark_of(spec.text))
    schema: dict[str, Any] | str = {"type": "object"} if spec.kind == "json_object" else spec.text
    return LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": JSON_SPACE})


def _lark_of(ebnf: str) -> str:
    try:
        return gbnf_to_lark(ebnf)
    except Exception as error:  # its parser raises classes of its own and what Python raises for it
        raise ValueError(f"no grammar in EBNF ({_line(str(error))})") from None


def _refusal(message: str, param: str) -> InvalidRequestError:
    line = _line(message)
    if any(word in line.lower() for word in LIMIT_WORDS):
        return GrammarLimitError(
            f"{param} costs more than one request may ask for ({line}); give a smaller one.", param=param
        )
    return InvalidRequestError(f"{param} cannot be enforced ({line}); mend it or leave it out.", param=param)


def _line(message: str) -> str:
    return " ".join(message.split())[:MAX_MESSAGE_CHARS].removesuffix("<non-verbose/>").strip()
