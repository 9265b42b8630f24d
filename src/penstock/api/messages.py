"""/v1/messages and /v1/messages/count_tokens: Anthropic's protocol over the same engine."""

import secrets
from contextlib import ExitStack
from typing import Annotated, Any

from msgspec import Meta, Struct
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response

from penstock.api.answering import collect
from penstock.api.context import Context
from penstock.api.conversation import ToolChoice, check_tool, read_messages
from penstock.api.engine_face import ReadPrompt
from penstock.api.message_shapes import InputTokens
from penstock.api.message_turns import read_system, read_turns
from penstock.api.message_writer import MessageEvents, message_refusal, whole_message
from penstock.api.requests import check_model, json_response, read_body, timeout_of
from penstock.api.sampling_fields import fewer
from penstock.api.sse import EventStream
from penstock.api.tooling import Tooling
from penstock.engine.serving import Call
from penstock.errors import InvalidRequestError
from penstock.request import SamplingParams, StructuredOutputsParams


class Conversation(Struct, frozen=True, kw_only=True):
    """What counting tokens needs."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]  # Any: read by message_turns.py
    system: str | list[dict[str, Any]] | None = None  # Any: text blocks
    tools: list[dict[str, Any]] | None = None  # Any: JSON schemas
    tool_choice: dict[str, Any] | None = None  # Any: {type, name, disable_parallel_tool_use}
    thinking: dict[str, Any] | None = None  # Any: {type, budget_tokens}


class MessagesRequest(Conversation, frozen=True, kw_only=True):
    max_tokens: Annotated[int, Meta(ge=1, le=2**31)]
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**63 - 1)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    timeout: Annotated[float, Meta(gt=0, le=1e9)] | None = None
    return_receipt: bool | None = None


async def messages(request: Request) -> Response:
    """Answer a conversation as Anthropic's clients expect it."""
    context: Context = request.app.state.context
    body, num_bytes = await read_body(request, context, MessagesRequest)
    tooling, turns = _read(body, context)
    fewer("stop_sequences", body.stop_sequences or (), context.limits.stop_strings)
    if body.stop_sequences is not None and not all(body.stop_sequences):
        raise InvalidRequestError(
            "stop_sequences has an empty string, which stands everywhere; leave it out.",
            param="stop_sequences",
        )
    engine = context.engine
    params = _params(body, context, tooling)
    with ExitStack() as held:
        ticket = held.enter_context(engine.admit(num_bytes))
        read, tooling, grammar = await engine.offload(_render, context, tooling, turns)
        answer_id = f"msg_{secrets.token_hex(12)}"
        call = Call(
            request_id=answer_id,
            prompt_tokens=read.token_ids,
            params=params if grammar is None else replace(params, structured_outputs=grammar),
            grammar_param="tools",
            timeout_s=timeout_of(request, body.timeout),
            key_id=request.state.key_id,
        )
        if not body.stream:
            (whole,) = await collect(engine, [ticket], [call])
            return json_response(whole_message(context, body, answer_id, tooling, whole, request))
        events = MessageEvents(context, body, answer_id, tooling, request)
        return await EventStream(events.frames(ticket, call), context, message_refusal, held.pop_all()).open()


async def count_tokens(request: Request) -> Response:
    """How many tokens the prompt of such a message has."""
    context: Context = request.app.state.context
    body, num_bytes = await read_body(request, context, Conversation)
    tooling, turns = _read(body, context)
    with context.engine.admit(num_bytes):
        read = await context.engine.offload(tooling.read, context.engine.reader, turns, {})
    return json_response(InputTokens(len(read.token_ids)))


def _read(body: Conversation, context: Context) -> tuple[Tooling, list[dict[str, Any]]]:
    check_model(body.model, context)
    source = context.chat_template("use /v1/completions")
    if body.thinking is not None and body.thinking.get("type") != "disabled":
        raise InvalidRequestError(
            "thinking cannot be asked for or bounded here; leave it out: a model that thinks, does.",
            param="thinking",
            code="unsupported_parameter",
        )
    tools = _tools(body, context)
    choice = body.tool_choice or {}
    tooling = Tooling.make(
        source, tools, _tool_choice(choice, tools), is_parallel=not choice.get("disable_parallel_tool_use"),
        schemas_at="tools[{}].input_schema",
    )  # fmt: skip
    system = read_system(body.system)
    turns = read_messages([*system, *read_turns(body.messages)], knows_developer=False)
    return tooling, turns


def _render(
    context: Context,
    tooling: Tooling,
    turns: list[dict[str, Any]],  # Any: foreign JSON
) -> tuple[ReadPrompt, Tooling, StructuredOutputsParams | None]:
    """In a thread: the prompt, and what holds the calls to their schemas."""
    engine = context.engine
    read = tooling.read(engine.reader, turns, {})
    tooling = tooling.after(read.text)
    grammar = tooling.grammar(None, engine.tokenizer.special_ids)
    return read, tooling, None if grammar is None else StructuredOutputsParams(grammar=grammar.text)


def _params(body: MessagesRequest, context: Context, tooling: Tooling) -> SamplingParams:
    said = {
        "temperature": body.temperature, "top_p": body.top_p, "top_k": body.top_k, "seed": body.seed,
        "stop": None if body.stop_sequences is None else tuple(body.stop_sequences),
    }  # fmt: skip
    given = {name: value for name, value in said.items() if value is not None}
    return replace(
        context.engine.facts.defaults,
        **given,
        **tooling.sampling(context.engine.tokenizer),
        max_tokens=body.max_tokens,
    )


def _tools(body: Conversation, context: Context) -> list[dict[str, Any]]:
    """Anthropic's tools as OpenAI's, which is what templates know."""
    tools = body.tools or []
    fewer("tools", tools, context.limits.tools)
    made: list[dict[str, Any]] = []
    for number, tool in enumerate(tools):
        if tool.get("type", "custom") != "custom":
            raise InvalidRequestError(
                f"tools[{number}].type is {tool.get('type')!r:.60}; no tool runs on the server here. "
                "Leave it out.",
                param=f"tools[{number}].type",
                code="unsupported_parameter",
            )
        function = {
            "name": tool.get("name"),
            "description": tool.get("description") or "",
            "parameters": tool.get("input_schema"),
            "strict": tool.get("strict"),
        }
        check_tool(function, f"tools[{number}]")
        if any(function["name"] == other["function"]["name"] for other in made):
            raise InvalidRequestError(
                f"tools[{number}].name stands twice; give each tool a name of its own.",
                param=f"tools[{number}].name",
            )
        made.append({"type": "function", "function": function})
    return made


def _tool_choice(choice: dict[str, Any], tools: list[dict[str, Any]]) -> ToolChoice:
    names = [tool["function"]["name"] for tool in tools]
    kind = choice.get("type", "auto")
    if kind == "none" or (kind == "auto" and not tools):
        return ToolChoice("none")
    if kind == "auto":
        return ToolChoice("auto")
    if kind == "any" and tools:
        return ToolChoice("required")
    if kind == "tool" and choice.get("name") in names:
        return ToolChoice("required", choice["name"])
    raise InvalidRequestError(
        "tool_choice is neither auto, any, none nor a tool of this request; give one of them.",
        param="tool_choice",
    )
