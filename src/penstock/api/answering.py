"""From a checked call to its pieces: one stream of news, or several merged; and the whole of them.

Called by completions, chat and messages. Holds nothing until it is entered; leaving aborts what still runs.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from penstock.api.engine_face import Engine
from penstock.api.shapes import CachedTokens, PromptLogprob, PromptLogprobs, Usage
from penstock.engine.serving import Call
from penstock.errors import GrammarDeadEndError
from penstock.request import CompletionOutput, Logprob, RequestOutput

Ticket = AbstractContextManager[Any]  # Any: the engine's own


News = AsyncIterator[tuple[int, RequestOutput]]  # (which call, what is new in its answer)


@asynccontextmanager
async def open_news(engine: Engine, tickets: Sequence[Ticket], calls: Sequence[Call]) -> AsyncIterator[News]:
    """Entering submits all calls, so that what is refused is refused before any answer begins.

    One call is read in the task that asks; several have a task each.
    """
    async with AsyncExitStack() as stack:
        streams = [
            await stack.enter_async_context(engine.stream(ticket, call))
            for ticket, call in zip(tickets, calls, strict=True)
        ]
        async with aclosing(_one(streams[0]) if len(streams) == 1 else _merged(streams)) as news:
            yield news


async def _one(stream: AsyncIterator[RequestOutput]) -> AsyncGenerator[tuple[int, RequestOutput], None]:
    async for piece in stream:
        yield 0, _sound(piece)


def _sound(piece: RequestOutput) -> RequestOutput:
    """An answer that came to a dead end is no answer: half of it would look whole."""
    if any(output.finish_reason == "error" for output in piece.outputs):
        raise GrammarDeadEndError(
            "the answer came to a place where its grammar allows no token of this model; allow more, or send "
            "it again with another seed."
        )
    return piece


async def _merged(
    streams: Sequence[AsyncIterator[RequestOutput]],
) -> AsyncGenerator[tuple[int, RequestOutput], None]:
    arrived: asyncio.Queue[tuple[int, RequestOutput | Exception | None]] = asyncio.Queue(2)

    async def pump(number: int, stream: AsyncIterator[RequestOutput]) -> None:
        try:
            async for piece in stream:
                await arrived.put((number, _sound(piece)))
            await arrived.put((number, None))
        except Exception as error:
            await arrived.put((number, error))

    tasks = [asyncio.create_task(pump(number, stream)) for number, stream in enumerate(streams)]
    try:
        num_open = len(tasks)
        while num_open:
            number, piece = await arrived.get()
            if isinstance(piece, Exception):
                raise piece
            if piece is None:
                num_open -= 1
            else:
                yield number, piece
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(slots=True)
class Choice:
    """One of n answers of one call, so far."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    finish_reason: str = "length"
    stop_reason: int | str | None = None

    def take(self, output: CompletionOutput) -> None:
        self.text += output.text
        self.token_ids += output.token_ids
        if output.logprobs:
            self.logprobs += output.logprobs
        if output.finish_reason is not None:
            self.finish_reason, self.stop_reason = output.finish_reason, output.stop_reason


@dataclass(slots=True)
class Whole:
    """One call's finished answer; `last` has its seed, fingerprint, prompt and metrics."""

    choices: list[Choice]
    last: RequestOutput


async def collect(engine: Engine, tickets: Sequence[Ticket], calls: Sequence[Call]) -> list[Whole]:
    """The whole answers, in the order of the calls."""
    choices = [[Choice() for _ in range(call.params.n)] for call in calls]
    last: dict[int, RequestOutput] = {}
    async with open_news(engine, tickets, calls) as news:
        async for number, piece in news:
            last[number] = piece
            for output in piece.outputs:
                choices[number][output.index].take(output)
    return [Whole(made, last[number]) for number, made in enumerate(choices)]


def usage_of(num_prompt: int, num_output: int, num_cached: int) -> Usage:
    return Usage(num_prompt, num_output, num_prompt + num_output, CachedTokens(num_cached))


def prompt_logprobs_of(output: RequestOutput) -> PromptLogprobs:
    return [
        None
        if row is None
        else {str(token): PromptLogprob(p.logprob, p.rank, p.decoded_token) for token, p in row.items()}
        for row in output.prompt_logprobs or []
    ]
