"""A tokenizer as grammars see it: what bytes each id adds to a text.

Called by the engine and by `grammar_prover`. Refuses tokenizers whose texts are more than their tokens' bytes
one after the other (WordPiece), since no mask of tokens can then hold a text to a grammar.
"""

from collections.abc import Collection

from penstock.errors import InvalidRequestError
from penstock.text.grammar_wire import Vocabulary
from penstock.text.tokenizer import Tokenizer

METASPACE = "\u2581"  # SentencePiece's spelling of a space


def vocabulary_of(tokenizer: Tokenizer, vocab_size: int, eos_ids: Collection[int]) -> Vocabulary:
    """The bytes of all `vocab_size` rows of the embedding. Costs about a microsecond for each."""
    specials = tokenizer.special_ids
    is_metaspace = tokenizer.has_metaspace
    if not tokenizer.is_byte_level and not is_metaspace:
        raise InvalidRequestError(
            "this model's tokenizer does not spell texts byte by byte, so that no answer can be held to a "
            "grammar; leave it out or use another model.",
            param="structured_outputs",
            code="unsupported_parameter",
        )
    tokens: list[bytes] = []
    for token_id in range(vocab_size):
        if not tokenizer.is_shown(token_id, skip_special=False):
            tokens.append(b"")
        elif token_id in specials:
            tokens.append(specials[token_id].encode())
        elif tokenizer.is_byte_level:
            tokens.append(tokenizer.token_bytes(token_id))
        else:
            tokens.append(_metaspace_bytes(tokenizer, token_id))
    return Vocabulary(tuple(tokens), tuple(sorted(specials)), tuple(sorted(eos_ids)))


def _metaspace_bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
    token = tokenizer.token_spelling(token_id)
    if tokenizer.is_byte(token_id):
        return bytes([int(token[3:5], 16)])
    return token.replace(METASPACE, " ").encode()
