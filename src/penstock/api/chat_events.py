"""A chat answer as server-sent events: role once, deltas, one finish_reason per choice. Called by chat."""

from collections.abc import AsyncGenerator, Iterator
from typing import TYPE_CHECKING

from msgspec import UNSET, UnsetType
from starlette.requests import Request

from penstock.api.answering import Ticket, open_news, prompt_logprobs_of, usage_of
from penstock.api.chat_whole import finish_reason_of
from penstock.api.context import Context
from penstock.api.logprobs import TokenNames, chat_logprobs
from penstock.api.shapes import (
    ChatChunk,
    ChatLogprobs,
    ChunkChoice,
    Delta,
    FunctionDelta,
    ToolCallDelta,
    Usage,
)
from penstock.api.sse import DONE, Template, event
from penstock.api.tooling import AnswerParser, Tooling, call_id
from penstock.engine.serving import Call
from penstock.request import CompletionOutput, RequestOutput
from penstock.text.output_events import (
    ContentDelta,
    OutputEvent,
    ReasoningDelta,
    ToolArgumentsDelta,
    ToolCallStart,
)

if TYPE_CHECKING:
    from penstock.api.chat import ChatRequest


class ChatEvents:
    """Frames of one answer. Where nothing but text is asked for, a frame is a template and the text."""

    def __init__(
        self, context: Context, body: "ChatRequest", answer_id: str, tooling: Tooling, request: Request
    ) -> None:
        self._context = context
        self._body = body
        self._id = answer_id
        self._tooling = tooling
        self._state = request.state
        self._created = context.now()
        options = body.stream_options
        self._wants_usage = options is not None and bool(options.include_usage)
        self._is_continuous = (
            self._wants_usage and options is not None and bool(options.continuous_usage_stats)
        )
        self._names = TokenNames(context.engine.tokenizer, as_ids=bool(body.return_tokens_as_token_ids))
        self._num_prompt = self._num_output = 0
        self._last: RequestOutput | None = None

    async def frames(self, ticket: Ticket, call: Call) -> AsyncGenerator[bytes, None]:
        body, tooling = self._body, self._tooling
        self._num_prompt = len(call.prompt_tokens)
        is_plain = (
            tooling.is_plain and not body.logprobs and not body.return_token_ids and not self._is_continuous
        )
        templates = [
            Template(self._chunk(ChunkChoice(index=index, delta=Delta(content="@"))))
            for index in range(call.params.n if is_plain else 0)
        ]
        parsers = [tooling.parser() for _ in range(0 if is_plain else call.params.n)]
        async with open_news(self._context.engine, [ticket], [call]) as news:
            yield b"".join(
                event(self._chunk(ChunkChoice(index=index, delta=Delta(role="assistant", content=""))))
                for index in range(call.params.n)
            )
            async for _, piece in news:
                self._last = piece
                for output in piece.outputs:
                    self._num_output += len(output.token_ids)
                    if is_plain:
                        if output.text:
                            yield templates[output.index].frame(output.text)
                        if output.finish_reason is not None:
                            yield self._end(output, output.finish_reason)
                    else:
                        for frame in self._rich(output, parsers[output.index]):
                            yield frame
        for frame in self._epilogue():
            yield frame
        yield DONE

    def _rich(self, output: CompletionOutput, parser: AnswerParser) -> Iterator[bytes]:
        """Frames of one piece: one per event; the first carries the piece's logprobs and token ids."""
        body = self._body
        events = parser.feed(output.text)
        if output.finish_reason is not None:
            events += parser.finish()
        logprobs = None
        if body.logprobs:
            rows = chat_logprobs(output.token_ids, output.logprobs or [], body.top_logprobs or 0, self._names)
            logprobs = ChatLogprobs(rows)
        ids: list[int] | UnsetType = output.token_ids if body.return_token_ids else UNSET
        deltas = [delta for one in events if (delta := self._delta(one)) is not None]
        if not deltas and output.token_ids and (logprobs is not None or ids is not UNSET):
            deltas = [Delta()]  # tokens without text so far still have their logprobs
        for delta in deltas:
            choice = ChunkChoice(index=output.index, delta=delta, logprobs=logprobs, token_ids=ids)
            yield event(self._chunk(choice))
            logprobs, ids = None, UNSET
        if output.finish_reason is not None:
            yield self._end(output, finish_reason_of(output.finish_reason, has_calls=parser.num_calls > 0))

    def _delta(self, one: OutputEvent) -> Delta | None:
        match one:
            case ContentDelta():
                return Delta(content=one.text)
            case ReasoningDelta():
                return Delta(reasoning_content=one.text)
            case ToolCallStart():
                function = FunctionDelta(name=one.name, arguments="")
                return Delta(
                    tool_calls=[
                        ToolCallDelta(index=one.index, id=call_id(), type="function", function=function)
                    ]
                )
            case ToolArgumentsDelta():
                function = FunctionDelta(arguments=one.text)
                return Delta(tool_calls=[ToolCallDelta(index=one.index, function=function)])
            case _:
                return None

    def _end(self, output: CompletionOutput, reason: str) -> bytes:
        choice = ChunkChoice(
            index=output.index, delta=Delta(), finish_reason=reason, stop_reason=output.stop_reason
        )
        return event(self._chunk(choice))

    def _usage(self) -> Usage:
        cached = 0 if self._last is None else self._last.num_cached_tokens
        return usage_of(self._num_prompt, self._num_output, cached)

    def _chunk(self, choice: ChunkChoice) -> ChatChunk:
        usage: Usage | UnsetType | None = None if self._wants_usage else UNSET
        return ChatChunk(
            id=self._id,
            created=self._created,
            model=self._body.model,
            choices=[choice],
            usage=self._usage() if self._is_continuous else usage,
            system_fingerprint=self._context.engine.facts.fingerprint,
        )

    def _epilogue(self) -> Iterator[bytes]:
        """Behind the last choice: usage, prompt logprobs and the receipt, as far as they were asked for."""
        body, last = self._body, self._last
        usage = self._usage()
        self._state.usage = {"prompt_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens}
        if last is None:
            return
        wants_prompt = body.prompt_logprobs is not None or bool(body.return_token_ids)
        if not (self._wants_usage or body.return_receipt or wants_prompt):
            return
        yield event(
            ChatChunk(
                id=self._id,
                created=self._created,
                model=body.model,
                choices=[],
                usage=usage,
                system_fingerprint=self._context.engine.facts.fingerprint,
                prompt_logprobs=prompt_logprobs_of(last) if body.prompt_logprobs is not None else UNSET,
                prompt_token_ids=list(last.prompt_token_ids) if body.return_token_ids else UNSET,
                metrics=self._context.engine.receipt(last) if body.return_receipt else UNSET,
            )
        )
