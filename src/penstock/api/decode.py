"""A request body -> a typed struct. Sorts what it does not know: refuse by name, or name it in a header.

Called by every POST route. Decides nothing about values but their type and bounds, which hang on the types.
"""

import re
from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar, get_type_hints

import msgspec

from penstock.errors import InvalidRequestError

Body = TypeVar("Body", bound=msgspec.Struct)

# Sent by common clients; what they say cannot reach an answer.
HARMLESS = frozenset(
    [
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "request_id",
        "guided_decoding_backend",
        "cache_control",
        "inference_geo",
        "speed",
    ]
)
# Known elsewhere, would change an answer, not implemented here. name -> the value that asks for nothing.
UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "audio": (), "modalities": (["text"],), "prediction": (), "functions": ([],), "function_call": ("none",),
    "web_search_options": (), "verbosity": ("medium",), "use_beam_search": (False,),
    "length_penalty": (1, 1.0), "early_stopping": (False,), "truncate_prompt_tokens": (),
    "truncation_side": (), "logits_processors": ([],), "prompt_embeds": (), "mm_processor_kwargs": ({},),
    "documents": ([],), "kv_transfer_params": (), "vllm_xargs": ({},), "guided_whitespace_pattern": (),
    "whitespace_pattern": (), "spaces_between_special_tokens": (True,), "dry_multiplier": (0, 0.0),
    "dry_base": (), "dry_allowed_length": (), "xtc_probability": (0, 0.0), "xtc_threshold": (),
    "mirostat": (0,), "mirostat_tau": (), "mirostat_eta": (), "top_a": (0, 0.0), "tfs_z": (1, 1.0),
    "top_n_sigma": (-1, 0), "smoothing_factor": (0, 0.0), "dynatemp_range": (0, 0.0),
    "no_repeat_ngram_size": (0,), "epsilon_cutoff": (0,), "eta_cutoff": (0,), "thinking_token_budget": (),
    "lora": (), "lora_path": (), "adapter": (), "images": ([],), "structural_tag": (),
    "detokenize": (True,), "logprob_token_ids": (), "dimensions": (),
    "repetition_detection": (), "mcp_servers": ([],), "betas": ([],), "output_config": (), "container": (),
    "context_management": (), "custom_logit_processor": (), "return_hidden_states": (False,),
}  # fmt: skip
EXPECTED = re.compile(
    r"Expected `(?P<wanted>[^`]*)`(?P<bound> [^`]*?)?(?:, got `(?P<got>\w+)`)?(?: - at `(?P<path>.*)`)?$"
)
MISSING = re.compile(r"Object missing required field `(?P<field>\w+)`(?: - at `(?P<path>.*)`)?$")
MAX_NAMES_IN_HEADER = 20


def to_struct(
    value: Any, kind: type[Body], *, is_strict: bool = False
) -> tuple[Body, list[str]]:  # Any: foreign JSON
    """(`value` as `kind`, names of its ignored fields). InvalidRequestError names the first bad field."""
    if not isinstance(value, dict):
        raise InvalidRequestError(
            f"the body is {article(value)}; it must be a JSON object with the request's parameters.",
            param="",
            code="invalid_type",
        )
    known = kind.__struct_fields__
    ignored = [name for name in value if name not in known]
    if ignored:
        ignored = _sort(value, ignored, is_strict=is_strict)
    for name in _whole_numbers(kind):
        number = value.get(name)
        if type(number) is float and number.is_integer():
            value[name] = int(number)  # 1.0 is a way to write 1
    try:
        return msgspec.convert(value, kind), ignored
    except msgspec.ValidationError as error:
        _refuse(str(error), value)


def article(value: object) -> str:
    kinds = {
        dict: "an object", list: "an array", str: "a string", bool: "a boolean", int: "a number",
        float: "a number", type(None): "null",
    }  # fmt: skip
    return kinds.get(type(value), "something else")


def _sort(value: Mapping[str, object], unknown: list[str], *, is_strict: bool) -> list[str]:
    ignored = []
    for name in unknown:
        shown = name if name.isascii() and name.isprintable() and len(name) <= 64 else repr(name)[:66]
        if name in UNSUPPORTED:
            if value[name] is not None and value[name] not in UNSUPPORTED[name]:
                raise InvalidRequestError(
                    f"{shown} is not supported here and would change the answer; leave it out.",
                    param=shown,
                    code="unsupported_parameter",
                )
        elif name not in HARMLESS:
            raise InvalidRequestError(
                f"{shown} is no parameter of this route; it may be meant to change the answer. Leave it out.",
                param=shown,
                code="unknown_parameter",
            )
        if is_strict:
            raise InvalidRequestError(
                f"{shown} is not used here, and this server is strict (--strict); leave it out.",
                param=shown,
                code="unknown_parameter",
            )
        ignored.append(name)
    return ignored


_WHOLE: dict[type, tuple[str, ...]] = {}


def _whole_numbers(kind: type[msgspec.Struct]) -> tuple[str, ...]:
    """Fields of `kind` that are integers or null."""
    if kind not in _WHOLE:
        hints = get_type_hints(kind)
        _WHOLE[kind] = tuple(n for n, hint in hints.items() if hint is int or hint == int | None)
    return _WHOLE[kind]


def _refuse(message: str, value: Mapping[str, Any]) -> NoReturn:  # Any: foreign JSON
    """msgspec's message, retold with the parameter's name, its value and the code that clients know."""
    if missing := MISSING.match(message):
        field, path = missing["field"], _param(missing["path"] or "$")
        name = f"{path}.{field}" if path else field
        raise InvalidRequestError(
            f"{name} is missing; this request means nothing without it. Add it.",
            param=name,
            code="missing_required_parameter",
        ) from None
    found = EXPECTED.match(message)
    if found is None:
        raise InvalidRequestError(f"{message}.", param="", code="invalid_value") from None
    name = _param(found["path"] or "$")
    if found["got"] is not None:
        raise InvalidRequestError(
            f"{name or 'the body'} is {_got(found['got'])}; it must be {_wanted(found['wanted'])}.",
            param=name,
            code="invalid_type",
        ) from None
    bound, shown = (found["bound"] or "").strip(), _shown(value, found["path"] or "$")
    code = "invalid_value"
    if bound.startswith("of length <="):
        code = "array_above_max_length" if found["wanted"] == "array" else "string_above_max_length"
    raise InvalidRequestError(
        f"{name} is {shown}; it must be {_wanted(found['wanted'])} {bound}.", param=name, code=code
    ) from None


def _param(path: str) -> str:
    return path.removeprefix("$").removeprefix(".").replace("[...]", "")


def _got(kind: str) -> str:
    return {"null": "null"}.get(kind, f"of type {kind}")


def _wanted(kinds: str) -> str:
    words = {"int": "an integer", "str": "a string", "bool": "a boolean", "float": "a number",
             "array": "an array", "object": "an object", "null": "null"}  # fmt: skip
    return " or ".join(words.get(kind, kind) for kind in kinds.split(" | "))


def _shown(value: Any, path: str) -> str:  # Any: foreign JSON
    """The offending value in a few characters; it is found again by its path."""
    for step in re.findall(r"\.(\w+)|\[(\d+)\]", path):
        try:
            value = value[step[0]] if step[0] else value[int(step[1])]
        except (KeyError, IndexError, TypeError):
            return "out of bounds"
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length():,} bits"
    if isinstance(value, str | list):
        return f"of length {len(value):,}"
    return repr(value)[:40] if isinstance(value, int | float) else "out of bounds"
