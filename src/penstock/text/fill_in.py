"""Filling in the middle: the model writes what stands between a prompt and a suffix. For api.completions.

Only where the tokenizer has the three tokens for it; the text around them is plain text, whatever it spells.
"""

from penstock.errors import InvalidRequestError
from penstock.text.tokenizer import Tokenizer

SPELLINGS = (  # prefix, suffix, middle
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<PRE>", "<SUF>", "<MID>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
)


def fill_in_prompt(prefix: str, suffix: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of: prefix mark, prefix, suffix mark, suffix, middle mark; what follows is the middle."""
    for marks in SPELLINGS:
        ids = [tokenizer.token_id(mark) for mark in marks]
        if None in ids:
            continue
        before, after, middle = (token for token in ids if token is not None)
        begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        begin = begin if tokenizer.encode("", add_special=True) == begin else []
        return [*begin, before, *_plain(prefix, tokenizer), after, *_plain(suffix, tokenizer), middle]
    raise InvalidRequestError(
        "suffix: this model has no tokens for filling in; leave it out or use a model that has them.",
        param="suffix",
        code="unsupported_parameter",
    )


def _plain(text: str, tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode_rendered(tokenizer.mark_specials(text))
