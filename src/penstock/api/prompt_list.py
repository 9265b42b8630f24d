"""A `prompt` or `input` in any of OpenAI's four shapes -> prompts. For completions and embeddings."""

from typing import Any

from penstock.errors import InvalidRequestError

OnePrompt = str | list[int]


def read_prompts(value: str | list[Any], param: str) -> list[OnePrompt]:  # Any: checked here
    """One text, one list of ids, a list of texts or a list of lists of ids."""
    if isinstance(value, str):
        return [value]
    if not value:
        raise InvalidRequestError(f"{param} is an empty list; give at least one prompt.", param=param)
    if all(type(entry) is int for entry in value):
        return [_checked(value, param)]
    if all(isinstance(entry, str) for entry in value):
        return list(value)
    if all(isinstance(entry, list) and entry and all(type(t) is int for t in entry) for entry in value):
        return [_checked(entry, param) for entry in value]
    raise InvalidRequestError(
        f"{param} is neither a text, a list of texts, a list of token ids nor a list of non-empty lists of "
        "token ids; give one of them.",
        param=param,
        code="invalid_type",
    )


def _checked(ids: list[int], param: str) -> list[int]:
    """Ids that could be some model's; whether they are this one's is for admission to say."""
    if min(ids) < 0 or max(ids) >= 2**31:
        raise InvalidRequestError(
            f"{param} has a token id that no vocabulary has; ids are whole numbers from 0 up.", param=param
        )
    return ids
