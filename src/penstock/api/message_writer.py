"""An answer in Anthropic's shape: whole, or as its event protocol, block by block. Called by messages."""

import json
from collections.abc import AsyncGenerator, Iterator
from typing import TYPE_CHECKING

from msgspec import UNSET
from starlette.requests import Request

from penstock.api.answering import Ticket, Whole, open_news
from penstock.api.chat_whole import Parsed, parse
from penstock.api.context import Context
from penstock.api.message_shapes import (
    Block,
    BlockDelta,
    BlockStart,
    BlockStop,
    InputJsonDelta,
    MessageAnswer,
    MessageDelta,
    MessageEvent,
    MessageStart,
    MessageStop,
    MessageUsage,
    StopDelta,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    ToolUseBlock,
)
from penstock.api.problem import body_of, problem_of
from penstock.api.sse import event
from penstock.api.tooling import Tooling, call_id
from penstock.engine.serving import Call
from penstock.request import RequestOutput
from penstock.text.output_events import (
    ContentDelta,
    OutputEvent,
    ReasoningDelta,
    ToolArgumentsDelta,
    ToolCallStart,
)

if TYPE_CHECKING:
    from penstock.api.messages import MessagesRequest


def message_refusal(error: BaseException) -> bytes:
    """The event that ends a stream which failed."""
    return b"event: error\ndata: " + body_of(problem_of(error), request_id="", is_anthropic=True) + b"\n\n"


def stop_of(reason: str | None, stop: int | str | None, *, has_calls: bool) -> StopDelta:
    if isinstance(stop, str):
        return StopDelta("stop_sequence", stop)
    if reason == "length":
        return StopDelta("max_tokens", None)
    return StopDelta("tool_use" if has_calls else "end_turn", None)


def whole_message(
    context: Context,
    body: "MessagesRequest",
    answer_id: str,
    tooling: Tooling,
    whole: Whole,
    request: Request,
) -> MessageAnswer:
    (choice,) = whole.choices
    parsed = Parsed(choice.text) if tooling.is_plain else parse(tooling, choice.text)
    content: list[Block] = []
    if parsed.reasoning:
        content.append(ThinkingBlock(parsed.reasoning))
    if parsed.content or not parsed.calls:
        content.append(TextBlock(parsed.content))
    content += [ToolUseBlock(f"toolu_{call_id()}", name, _input(text)) for name, text in parsed.calls]
    stop = stop_of(choice.finish_reason, choice.stop_reason, has_calls=bool(parsed.calls))
    request.state.usage = {
        "prompt_tokens": len(whole.last.prompt_token_ids),
        "output_tokens": len(choice.token_ids),
    }
    return MessageAnswer(
        id=answer_id,
        model=body.model,
        content=content,
        stop_reason=stop.stop_reason,
        stop_sequence=stop.stop_sequence,
        usage=_usage(whole.last, len(choice.token_ids)),
        metrics=context.engine.receipt(whole.last) if body.return_receipt else UNSET,
    )


def _input(arguments: str) -> dict[str, object]:
    """Arguments of a call that was cut off are no JSON: an empty object, and stop_reason says max_tokens."""
    try:
        value = json.loads(arguments)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _usage(output: RequestOutput, num_output: int) -> MessageUsage:
    cached = output.num_cached_tokens
    return MessageUsage(len(output.prompt_token_ids) - cached, num_output, cached)


def frame(one: MessageEvent) -> bytes:
    return event(one, str(type(one).__struct_config__.tag))


class MessageEvents:
    """message_start, then blocks (start, deltas, stop), message_delta with the reason, message_stop."""

    def __init__(
        self, context: Context, body: "MessagesRequest", answer_id: str, tooling: Tooling, request: Request
    ) -> None:
        self._context = context
        self._body = body
        self._id = answer_id
        self._tooling = tooling
        self._state = request.state
        self._index = -1
        self._open: str | None = None  # kind of the block that is being written

    async def frames(self, ticket: Ticket, call: Call) -> AsyncGenerator[bytes, None]:
        parser = self._tooling.parser()
        num_output, last, stop = 0, None, StopDelta("end_turn", None)
        async with open_news(self._context.engine, [ticket], [call]) as news:
            yield frame(MessageStart(self._start(len(call.prompt_tokens))))
            async for _, piece in news:
                last = piece
                for output in piece.outputs:
                    num_output += len(output.token_ids)
                    events = parser.feed(output.text)
                    if output.finish_reason is not None:
                        events += parser.finish()
                        has_calls = parser.num_calls > 0
                        stop = stop_of(output.finish_reason, output.stop_reason, has_calls=has_calls)
                    for one in events:
                        for made in self._write(one):
                            yield frame(made)
        assert last is not None, "an answer has an end"
        if self._index < 0:
            yield frame(self._begin("text", TextBlock("")))
        if self._open is not None:
            yield frame(BlockStop(self._index))
        self._state.usage = {"prompt_tokens": len(call.prompt_tokens), "output_tokens": num_output}
        metrics = self._context.engine.receipt(last) if self._body.return_receipt else UNSET
        yield frame(MessageDelta(delta=stop, usage=_usage(last, num_output), metrics=metrics))
        yield frame(MessageStop())

    def _start(self, num_prompt: int) -> MessageAnswer:
        return MessageAnswer(
            id=self._id,
            model=self._body.model,
            content=[],
            stop_reason=None,
            stop_sequence=None,
            usage=MessageUsage(num_prompt, 0),
        )

    def _write(self, one: OutputEvent) -> Iterator[MessageEvent]:
        match one:
            case ContentDelta():
                yield from self._within("text", TextBlock(""))
                yield BlockDelta(self._index, TextDelta(one.text))
            case ReasoningDelta():
                yield from self._within("thinking", ThinkingBlock(""))
                yield BlockDelta(self._index, ThinkingDelta(one.text))
            case ToolCallStart():
                block = ToolUseBlock(f"toolu_{call_id()}", one.name, {})
                yield from self._within(f"call {one.index}", block)
            case ToolArgumentsDelta():
                yield BlockDelta(self._index, InputJsonDelta(one.text))
            case _:
                yield from ()

    def _within(self, kind: str, block: Block) -> Iterator[MessageEvent]:
        """Close the open block, if it is of another kind, and open one of this kind."""
        if self._open == kind:
            return
        if self._open is not None:
            yield BlockStop(self._index)
        yield self._begin(kind, block)

    def _begin(self, kind: str, block: Block) -> BlockStart:
        self._index += 1
        self._open = kind
        return BlockStart(self._index, block)
