"""What an answer must match, from the shapes that users give it: every limit is checked here, by name.

Called at admission, in any process and before anything is compiled. Refuses what is too large
(GrammarLimitError) or no grammar at all (InvalidRequestError); whether it compiles is for
`grammar_worker` to prove.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from penstock.errors import GrammarLimitError, InvalidRequestError
from penstock.request import GrammarSpec, StructuredOutputsParams
from penstock.text.json_schema import check_schema, with_ascii_classes_in_patterns
from penstock.text.pattern import check_pattern, with_ascii_classes

MAX_SCHEMA_BYTES = 64 * 1024
MAX_PATTERN_BYTES = 4 * 1024
MAX_GRAMMAR_BYTES = 64 * 1024
MAX_CHOICES = 1000
# Between two parts of a JSON text: a weak model would put space there for ever.
JSON_SPACE = r"[ \t]{1,4}|\r?\n[ \t]{0,40}"
EBNF_RULE = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)


def spec_of(
    asked: StructuredOutputsParams | None, *, param: str = "structured_outputs"
) -> GrammarSpec | None:
    """The one grammar that is asked for, or None. `param` is what the user calls it, for messages."""
    if asked is None:
        return None
    if not isinstance(asked, StructuredOutputsParams):
        raise InvalidRequestError(
            f"{param} is {type(asked).__name__}; give StructuredOutputsParams.",
            param=param,
            code="invalid_type",
        )
    given = {
        "json": asked.json,
        "regex": asked.regex,
        "choice": asked.choice,
        "grammar": asked.grammar,
        "json_object": asked.json_object or None,
    }
    names = [name for name, value in given.items() if value is not None]
    if not names:
        return None
    if len(names) > 1:
        raise InvalidRequestError(
            f"{param} has {' and '.join(names)}; an answer can be held to one of them. Give one.", param=param
        )
    (name,) = names
    if name == "json_object":
        return json_object_spec()
    if name == "json":
        assert asked.json is not None, "it is the one that is given"
        return json_schema_spec(asked.json, param=f"{param}.json")
    if name == "choice":
        return choice_spec(asked.choice or (), param=f"{param}.choice")
    text = given[name]
    if not isinstance(text, str):
        raise InvalidRequestError(f"{param}.{name} is no text; give one.", param=f"{param}.{name}")
    if name == "regex":
        return regex_spec(text, param=f"{param}.regex")
    return grammar_spec(text, param=f"{param}.grammar")


def json_object_spec() -> GrammarSpec:
    """Any JSON object."""
    return GrammarSpec("json_object")


def json_schema_spec(schema: str | Mapping[str, Any], *, param: str) -> GrammarSpec:  # Any: a JSON schema
    """JSON that the schema accepts. Properties come in the order in which the schema names them."""
    if isinstance(schema, str):
        _bound(schema, MAX_SCHEMA_BYTES, "the JSON schema", param)
        try:
            value = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError(
                f"{param} is no JSON ({error}); give a JSON schema.", param=param
            ) from None
    else:
        value = schema
    check_schema(value, param=param)
    value = with_ascii_classes_in_patterns(value)
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(
            f"{param} holds what JSON cannot ({error}); give a JSON schema.", param=param
        ) from None
    _bound(text, MAX_SCHEMA_BYTES, "the JSON schema", param)
    return GrammarSpec("json_schema", text)


def regex_spec(pattern: str, *, param: str) -> GrammarSpec:
    """Texts that the pattern, in Rust's syntax, matches as a whole: ^ before and $ behind it change nothing.

    Its classes of digits and word letters are ASCII's.
    """
    _bound(pattern, MAX_PATTERN_BYTES, "the pattern", param)
    check_pattern(pattern, param=param)
    return GrammarSpec("regex", with_ascii_classes(pattern))


def choice_spec(choices: Sequence[str], *, param: str) -> GrammarSpec:
    """One of some texts."""
    if isinstance(choices, str) or not isinstance(choices, Sequence) or not choices:
        raise InvalidRequestError(f"{param} is no list of texts, or an empty one; give at least one.",
                                  param=param)  # fmt: skip
    if not all(isinstance(choice, str) and choice for choice in choices):
        raise InvalidRequestError(
            f"{param} has an entry that is no text, or an empty one; each must be an answer.", param=param
        )
    if len(choices) > MAX_CHOICES:
        raise GrammarLimitError(
            f"{param} has {len(choices):,} entries; the limit is {MAX_CHOICES:,}. Give fewer.", param=param
        )
    text = json.dumps(list(dict.fromkeys(choices)), ensure_ascii=False)
    _bound(text, MAX_GRAMMAR_BYTES, "the list of choices", param)
    return GrammarSpec("choice", text)


def grammar_spec(grammar: str, *, param: str) -> GrammarSpec:
    """Texts of a Lark grammar, or of one in EBNF (`root ::= ...`), whose start rule is `root`."""
    if not grammar.strip():
        raise InvalidRequestError(f"{param} is empty; give a grammar or leave it out.", param=param)
    _bound(grammar, MAX_GRAMMAR_BYTES, "the grammar", param)
    return GrammarSpec("ebnf" if EBNF_RULE.search(grammar) else "lark", grammar)


def _bound(text: str, limit: int, what: str, param: str) -> None:
    if not isinstance(text, str):
        raise InvalidRequestError(f"{param} is {type(text).__name__}; it must be a text.", param=param)
    try:
        num_bytes = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidRequestError(
            f"{param} holds half of a surrogate pair, which is no character; send valid Unicode.", param=param
        ) from None
    if num_bytes > limit:
        raise GrammarLimitError(
            f"{what} in {param} has {num_bytes:,} bytes; the limit is {limit:,}. Give a smaller one.",
            param=param,
        )
    if "\0" in text:
        raise InvalidRequestError(f"{param} holds NUL, which no answer can; leave it out.", param=param)
