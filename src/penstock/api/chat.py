"""/v1/chat/completions: answer a conversation, whole or as server-sent events; tools, reasoning, schemas."""

import secrets
from contextlib import ExitStack
from typing import Annotated, Any

from msgspec import Meta, Struct
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response

from penstock.api.answering import collect
from penstock.api.chat_events import ChatEvents
from penstock.api.chat_whole import whole_chat
from penstock.api.context import Context
from penstock.api.conversation import read_messages, read_tool_choice, read_tools
from penstock.api.engine_face import ReadPrompt
from penstock.api.requests import check_model, json_response, read_body, timeout_of
from penstock.api.sampling_fields import (
    SamplingFields,
    at_most,
    check_common,
    constraint,
    sampling_params,
)
from penstock.api.sse import EventStream, last_words
from penstock.api.tooling import Tooling
from penstock.engine.serving import Call
from penstock.errors import InvalidRequestError
from penstock.request import StructuredOutputsParams
from penstock.text.grammar import spec_of


class JsonSchemaFormat(Struct, frozen=True):
    name: str
    schema: dict[str, Any]  # Any: a JSON schema
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Struct, frozen=True):
    type: str
    json_schema: JsonSchemaFormat | None = None


class ChatRequest(SamplingFields, frozen=True, kw_only=True):
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]  # Any: read by conversation.py
    max_tokens: Annotated[int, Meta(ge=1, le=2**31)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1, le=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=2**31)] | None = None
    tools: list[dict[str, Any]] | None = None  # Any: JSON schemas
    tool_choice: str | dict[str, Any] | None = None  # Any: {type, function: {name}}
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: str | None = None
    include_reasoning: bool | None = None
    separate_reasoning: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None  # Any: what the template's author named


async def chat_completions(request: Request) -> Response:
    """Answer a conversation with the model's own chat template."""
    context: Context = request.app.state.context
    body, num_bytes = await read_body(request, context, ChatRequest)
    check_model(body.model, context)
    check_common(body, context.limits)
    engine = context.engine
    source = context.chat_template("use /v1/completions")
    tooling = _tooling(body, context, source)
    options = _template_options(body, context, source)
    shape = constraint(body, _response_format(body))
    tooling.check(has_shape=shape is not None)
    params = sampling_params(
        body, engine.facts.defaults, max_tokens=_max_tokens(body), logprobs=_num_logprobs(body, context),
        constraint=shape, **tooling.sampling(engine.tokenizer),
    )  # fmt: skip
    with ExitStack() as held:
        ticket = held.enter_context(engine.admit(num_bytes))
        read, tooling, grammar = await engine.offload(_read, context, body, tooling, options, shape)
        answer_id = f"chatcmpl-{secrets.token_hex(12)}"
        call = Call(
            request_id=answer_id,
            prompt_tokens=read.token_ids,
            params=params if grammar is None else replace(params, structured_outputs=grammar),
            grammar_param="tools" if grammar is not None and tooling.names else _shape_param(body),
            priority=body.priority or 0,
            cache_salt=body.cache_salt or "",
            timeout_s=timeout_of(request, body.timeout),
            key_id=request.state.key_id,
        )
        if not body.stream:
            (whole,) = await collect(engine, [ticket], [call])
            answer = whole_chat(context, body, answer_id, tooling, whole, request)
            return json_response(answer)
        events = ChatEvents(context, body, answer_id, tooling, request)
        return await EventStream(events.frames(ticket, call), context, last_words, held.pop_all()).open()


def _read(
    context: Context,
    body: ChatRequest,
    tooling: Tooling,
    options: dict[str, Any],  # Any: a template's
    shape: StructuredOutputsParams | None,
) -> tuple[ReadPrompt, Tooling, StructuredOutputsParams | None]:
    """Check schemas and messages and render these; in a thread, since all of them may be long.

    The grammar is what holds the answer besides its own shape: the marks of calls and of reasoning.
    """
    engine, reader = context.engine, context.engine.reader
    spec = spec_of(shape, param=_shape_param(body))
    messages = read_messages(body.messages, knows_developer="developer" in (reader.template_source or ""))
    read = tooling.read(reader, messages, options)
    tooling = tooling.after(read.text)
    grammar = tooling.grammar(spec, engine.tokenizer.special_ids)
    return read, tooling, None if grammar is None else StructuredOutputsParams(grammar=grammar.text)


def _shape_param(body: ChatRequest) -> str:
    return "response_format" if body.response_format else "structured_outputs"


def _max_tokens(body: ChatRequest) -> int | None:
    if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
        raise InvalidRequestError(
            f"max_tokens is {body.max_tokens} and max_completion_tokens {body.max_completion_tokens}; they "
            "are one number. Give one of them.",
            param="max_completion_tokens",
        )
    return body.max_completion_tokens if body.max_tokens is None else body.max_tokens


def _num_logprobs(body: ChatRequest, context: Context) -> int | None:
    top = body.top_logprobs
    if top and not body.logprobs:
        raise InvalidRequestError(
            "top_logprobs stands without logprobs: true; it says how many of them. Add it or leave both out.",
            param="top_logprobs",
        )
    at_most("top_logprobs", top or 0, context.limits.top_logprobs)
    return (top or 0) if body.logprobs else None


def _response_format(body: ChatRequest) -> StructuredOutputsParams | None:
    asked = body.response_format
    if asked is None or asked.type == "text":
        return None
    if asked.type == "json_object":
        return StructuredOutputsParams(json_object=True)
    if asked.type != "json_schema":
        raise InvalidRequestError(
            f"response_format.type is {asked.type[:40]!r}; it must be text, json_object or json_schema.",
            param="response_format.type",
        )
    if asked.json_schema is None:
        raise InvalidRequestError(
            "response_format.json_schema is missing; without it there is nothing to match. Add it.",
            param="response_format.json_schema",
            code="missing_required_parameter",
        )
    return StructuredOutputsParams(json=asked.json_schema.schema)


def _tooling(body: ChatRequest, context: Context, source: str) -> Tooling:
    tools = read_tools(body.tools, context.limits)
    return Tooling.make(
        source,
        tools,
        read_tool_choice(body.tool_choice, tools),
        is_parallel=body.parallel_tool_calls is not False,
        shows_reasoning=body.include_reasoning is not False,
    )


def _template_options(
    body: ChatRequest, context: Context, source: str
) -> dict[str, Any]:  # Any: a template's
    """Keywords for the template; only those that this server allows, and that change something there."""
    for name in ("continue_final_message", "chat_template"):
        if getattr(body, name):
            raise InvalidRequestError(
                f"{name} is not supported here and would change the answer; leave it out.",
                param=name,
                code="unsupported_parameter",
            )
    options: dict[str, Any] = {}  # Any: as above
    for name, value in (body.chat_template_kwargs or {}).items():
        if name not in context.config.template_kwargs or not isinstance(value, bool | str | int):
            raise InvalidRequestError(
                f"chat_template_kwargs may not set {name[:40]!r} on this server; its operator can allow it "
                "with --template-kwargs.",
                param="chat_template_kwargs",
                code="unsupported_parameter",
            )
        options[name] = value
    if body.reasoning_effort is not None:
        if "reasoning_effort" not in source:
            raise InvalidRequestError(
                "reasoning_effort means nothing to this model's chat template; leave it out.",
                param="reasoning_effort",
                code="unsupported_parameter",
            )
        options["reasoning_effort"] = body.reasoning_effort
    options["add_generation_prompt"] = body.add_generation_prompt is not False
    return options
