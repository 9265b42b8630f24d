"""A finished chat answer in OpenAI's shape. Called by chat."""

from typing import TYPE_CHECKING

from msgspec import UNSET, Struct, UnsetType
from starlette.requests import Request

from penstock.api.answering import Choice, Whole, prompt_logprobs_of, usage_of
from penstock.api.context import Context
from penstock.api.logprobs import TokenNames, chat_logprobs
from penstock.api.shapes import (
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    ChatLogprobs,
    FunctionCall,
    ToolCall,
)
from penstock.api.tooling import Tooling, call_id
from penstock.text.output_events import ContentDelta, ReasoningDelta, ToolArgumentsDelta, ToolCallStart

if TYPE_CHECKING:
    from penstock.api.chat import ChatRequest


class Parsed(Struct):
    """What an answer's text is made of."""

    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str]] = []


def parse(tooling: Tooling, text: str) -> Parsed:
    parsed = Parsed(calls=[])
    parser = tooling.parser()
    for event in parser.feed(text) + parser.finish():
        match event:
            case ContentDelta():
                parsed.content += event.text
            case ReasoningDelta():
                parsed.reasoning += event.text
            case ToolCallStart():
                parsed.calls.append((event.name, ""))
            case ToolArgumentsDelta():
                name, arguments = parsed.calls[-1]
                parsed.calls[-1] = (name, arguments + event.text)
            case _:
                pass
    return parsed


def finish_reason_of(reason: str, *, has_calls: bool) -> str:
    return "tool_calls" if has_calls and reason == "stop" else reason


def whole_chat(
    context: Context, body: "ChatRequest", answer_id: str, tooling: Tooling, whole: Whole, request: Request
) -> ChatCompletion:
    names = TokenNames(context.engine.tokenizer, as_ids=bool(body.return_tokens_as_token_ids))
    last = whole.last

    def choice_of(index: int, choice: Choice) -> ChatChoice:
        parsed = Parsed(choice.text) if tooling.is_plain else parse(tooling, choice.text)
        calls: list[ToolCall] | UnsetType = UNSET
        if parsed.calls:
            calls = [ToolCall(call_id(), FunctionCall(name, arguments)) for name, arguments in parsed.calls]
        logprobs = None
        if body.logprobs:
            rows = chat_logprobs(choice.token_ids, choice.logprobs, body.top_logprobs or 0, names)
            logprobs = ChatLogprobs(rows)
        return ChatChoice(
            index=index,
            message=AssistantMessage(
                content=parsed.content or None if parsed.calls else parsed.content,
                reasoning_content=parsed.reasoning or UNSET,
                tool_calls=calls,
            ),
            logprobs=logprobs,
            finish_reason=finish_reason_of(choice.finish_reason, has_calls=bool(parsed.calls)),
            stop_reason=choice.stop_reason,
            token_ids=choice.token_ids if body.return_token_ids else UNSET,
        )

    num_output = sum(len(choice.token_ids) for choice in whole.choices)
    usage = usage_of(len(last.prompt_token_ids), num_output, last.num_cached_tokens)
    request.state.usage = {"prompt_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens}
    return ChatCompletion(
        id=answer_id,
        created=context.now(),
        model=body.model,
        choices=[choice_of(index, choice) for index, choice in enumerate(whole.choices)],
        usage=usage,
        system_fingerprint=last.system_fingerprint,
        seed=last.seed,
        prompt_logprobs=prompt_logprobs_of(last) if body.prompt_logprobs is not None else UNSET,
        prompt_token_ids=list(last.prompt_token_ids) if body.return_token_ids else UNSET,
        metrics=context.engine.receipt(last) if body.return_receipt else UNSET,
    )
