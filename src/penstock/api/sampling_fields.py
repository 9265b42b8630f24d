"""What completions and chats may both say about sampling, and how it becomes SamplingParams.

Fields follow OpenAI; below them those of vLLM with the same meaning. Null is always the default. Each number
has two bounds: without the upper one, a number of 400 digits would be a valid integer.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from penstock.engine.serving import Limits
from penstock.errors import InvalidRequestError
from penstock.request import SamplingParams, StructuredOutputsParams

INT64 = 2**63
Count = Annotated[int, Meta(ge=0, le=2**31)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Share = Annotated[float, Meta(gt=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]


class StreamOptions(Struct, frozen=True, forbid_unknown_fields=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None  # padding against guessing sizes: there is none


class SamplingFields(Struct, frozen=True, kw_only=True):
    model: Annotated[str, Meta(min_length=1, max_length=256)]
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Share | None = None
    n: Annotated[int, Meta(ge=1, le=2**31)] | None = None
    seed: Annotated[int, Meta(ge=-INT64, le=INT64 - 1)] | None = None
    stop: str | list[str] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    # vLLM's
    top_k: Annotated[int, Meta(ge=-1, le=INT64 - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    typical_p: Share | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    min_tokens: Count | None = None
    stop_token_ids: list[TokenId] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[TokenId] | None = None
    prompt_logprobs: Annotated[int, Meta(ge=0, le=2**31)] | None = None
    priority: Annotated[int, Meta(ge=-(2**31), le=2**31)] | None = None
    cache_salt: str | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    structured_outputs: dict[str, Any] | None = None  # Any: a schema; read by `constraint`
    guided_json: str | dict[str, Any] | None = None  # Any: a schema
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    # ours
    timeout: Annotated[float, Meta(gt=0, le=1e9)] | None = None
    return_receipt: bool | None = None


def check_common(body: SamplingFields, limits: Limits) -> None:
    """Whatever is a limit of this server or a contradiction between fields. InvalidRequestError names it."""
    at_most("n", body.n or 1, limits.n)
    at_most("prompt_logprobs", body.prompt_logprobs or 0, limits.prompt_logprobs)
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    fewer("stop", stops, limits.stop_strings)
    for name in ("stop_token_ids", "bad_words", "allowed_token_ids"):
        fewer(name, getattr(body, name) or (), limits.listed_token_ids)
    fewer("logit_bias", body.logit_bias or (), limits.logit_bias)
    shorter("user", body.user or "", limits.user_chars)
    if body.cache_salt is not None:
        check_salt(body.cache_salt, limits)
    if body.stream_options is not None and not body.stream:
        raise InvalidRequestError(
            "stream_options stands without stream: true; it says how to stream. Leave it out or stream.",
            param="stream_options",
        )


def check_salt(salt: str, limits: Limits) -> None:
    is_plain = salt.isascii() and salt.translate(PLAIN) == ""
    if not salt or not is_plain or len(salt) > limits.cache_salt_chars:
        raise InvalidRequestError(
            f"cache_salt is no name of 1 to {limits.cache_salt_chars} letters, digits, '_', '.' or '-'; "
            "it is part of a key. Choose such a name.",
            param="cache_salt",
        )


PLAIN = dict.fromkeys(map(ord, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-"))


def at_most(name: str, value: int, highest: int) -> None:
    if value > highest:
        raise InvalidRequestError(
            f"{name} is {value:,}; this server allows {highest:,}. Ask for at most that many.", param=name
        )


def fewer(name: str, values: Any, highest: int) -> None:  # Any: whatever has a length
    if len(values) > highest:
        raise InvalidRequestError(
            f"{name} has {len(values):,} entries; this server allows {highest:,}. Send fewer.",
            param=name,
            code="array_above_max_length",
        )


def shorter(name: str, text: str, highest: int) -> None:
    if len(text) > highest:
        raise InvalidRequestError(
            f"{name} has {len(text):,} characters; this server allows {highest:,}. Send a shorter one.",
            param=name,
            code="string_above_max_length",
        )


def sampling_params(
    body: SamplingFields,
    defaults: SamplingParams,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    constraint: StructuredOutputsParams | None,
    **more: Any,  # Any: further fields of SamplingParams
) -> SamplingParams:
    """The model's defaults with what the body says; values are checked at admission."""
    said: dict[str, Any] = {name: getattr(body, name) for name in SAME}  # Any: as declared
    said["stop"] = (
        None if body.stop is None else (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)
    )
    for name in ("stop_token_ids", "bad_words", "allowed_token_ids"):
        values = getattr(body, name)
        said[name] = None if values is None else tuple(values)
    said["logit_bias"] = None if body.logit_bias is None else _bias(body.logit_bias)
    if said["stop"] is not None and not all(said["stop"]):
        raise InvalidRequestError(
            "stop has an empty string, which stands everywhere; leave it out.", param="stop"
        )
    given = {name: value for name, value in said.items() if value is not None} | more
    return msgspec.structs.replace(
        defaults, **given, max_tokens=max_tokens, logprobs=logprobs, structured_outputs=constraint
    )


SAME = (
    "temperature", "top_p", "n", "seed", "presence_penalty", "frequency_penalty", "top_k", "min_p",
    "typical_p", "repetition_penalty", "min_tokens", "include_stop_str_in_output", "ignore_eos",
    "skip_special_tokens", "prompt_logprobs",
)  # fmt: skip


def _bias(bias: dict[str, float]) -> dict[int, float]:
    made: dict[int, float] = {}
    for key, value in bias.items():
        if not (key.isascii() and key.isdecimal() and len(key) <= 10):
            raise InvalidRequestError(
                f"logit_bias has the key {key!r:.40}; keys are token ids. Use whole numbers.",
                param="logit_bias",
            )
        made[int(key)] = value
    return made


def constraint(
    body: SamplingFields, more: StructuredOutputsParams | None = None
) -> StructuredOutputsParams | None:
    """What the answer must match, said in at most one way; `more` is what response_format says."""
    ways: dict[str, StructuredOutputsParams] = {}
    if more is not None:
        ways["response_format"] = more
    for name, field in (("guided_json", "json"), ("guided_regex", "regex"), ("guided_grammar", "grammar")):
        if (value := getattr(body, name)) is not None:
            ways[name] = StructuredOutputsParams(**{field: value})
    if body.guided_choice is not None:
        ways["guided_choice"] = StructuredOutputsParams(choice=tuple(body.guided_choice))
    if body.structured_outputs is not None:
        ways["structured_outputs"] = _structured(body.structured_outputs)
    if len(ways) > 1:
        raise InvalidRequestError(
            f"{' and '.join(sorted(ways))} both say what the answer must match; give one of them.",
            param=sorted(ways)[1],
        )
    return next(iter(ways.values()), None)


def _structured(value: dict[str, Any]) -> StructuredOutputsParams:  # Any: foreign JSON
    try:
        made = msgspec.convert({k: v for k, v in value.items() if v is not None}, StructuredOutputsParams)
    except msgspec.ValidationError as error:
        raise InvalidRequestError(
            f"structured_outputs: {error}; give one of json, regex, choice, grammar, json_object.",
            param="structured_outputs",
        ) from None
    given = sum(x is not None for x in (made.json, made.regex, made.choice, made.grammar)) + made.json_object
    if given != 1:
        raise InvalidRequestError(
            f"structured_outputs names {given} constraints; give exactly one.", param="structured_outputs"
        )
    return made
