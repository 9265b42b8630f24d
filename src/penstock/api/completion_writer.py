"""Completions in OpenAI's shape: whole, or piece by piece. Called by completions."""

from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING

from msgspec import UNSET, UnsetType
from starlette.requests import Request

from penstock.api.answering import Choice, Ticket, Whole, open_news, prompt_logprobs_of, usage_of
from penstock.api.context import Context
from penstock.api.engine_face import ReadPrompt
from penstock.api.logprobs import Row, TokenNames, text_logprobs
from penstock.api.shapes import TextChoice, TextCompletion, TextLogprobs, Usage
from penstock.api.sse import DONE, Template, event
from penstock.engine.serving import Call
from penstock.request import CompletionOutput, RequestOutput

if TYPE_CHECKING:
    from penstock.api.completions import CompletionRequest


class CompletionWriter:
    """The answers of prompt i have the indices i * n to i * n + n - 1."""

    def __init__(
        self,
        context: Context,
        body: "CompletionRequest",
        answer_id: str,
        read: Sequence[ReadPrompt],
        request: Request,
    ) -> None:
        self._context = context
        self._body = body
        self._id = answer_id
        self._created = context.now()
        self._num_prompt = sum(len(one.token_ids) for one in read)
        self._state = request.state
        self._n = body.n or 1
        skips = body.skip_special_tokens is not False
        self._names = TokenNames(
            context.engine.tokenizer, as_ids=bool(body.return_tokens_as_token_ids), skip_special=skips
        )
        self._drops_output = body.max_tokens == 0  # only an echo: the one token that is drawn is not shown
        self._echoed = [self._echo(one, skips=skips) for one in read] if body.echo else [""] * len(read)
        options = body.stream_options
        self._wants_usage = options is not None and bool(options.include_usage)
        self._is_continuous = (
            options is not None and self._wants_usage and bool(options.continuous_usage_stats)
        )

    def _echo(self, prompt: ReadPrompt, *, skips: bool) -> str:
        if prompt.text is not None:
            return prompt.text
        return self._context.engine.tokenizer.decode(prompt.token_ids, skip_special=skips)

    def whole(self, wholes: Sequence[Whole]) -> TextCompletion:
        choices = [
            self._choice(number * self._n + index, choice, whole.last, self._echoed[number])
            for number, whole in enumerate(wholes)
            for index, choice in enumerate(whole.choices)
        ]
        num_output = sum(len(choice.token_ids) for whole in wholes for choice in whole.choices)
        return self._closing(choices, [whole.last for whole in wholes], num_output, wants_usage=True)

    def _choice(self, index: int, choice: Choice, output: RequestOutput, echoed: str) -> TextChoice:
        body = self._body
        ids, text = ([], "") if self._drops_output else (choice.token_ids, choice.text)
        logprobs = None
        if body.logprobs is not None:
            logprobs = self._logprobs(output, ids, choice.logprobs[: len(ids)], body.logprobs)
        wants_prompt = body.prompt_logprobs is not None
        return TextChoice(
            index=index,
            text=echoed + text,
            logprobs=logprobs,
            finish_reason="length" if self._drops_output else choice.finish_reason,
            stop_reason=choice.stop_reason,
            prompt_logprobs=prompt_logprobs_of(output) if wants_prompt else UNSET,
            token_ids=ids if body.return_token_ids else UNSET,
            prompt_token_ids=list(output.prompt_token_ids) if body.return_token_ids else UNSET,
        )

    def _logprobs(
        self, output: RequestOutput, ids: Sequence[int], rows: Sequence[Row], num_top: int
    ) -> TextLogprobs:
        if not self._body.echo:
            return text_logprobs(ids, rows, num_top, self._names)
        prompt_rows = output.prompt_logprobs or [None] * len(output.prompt_token_ids)
        return text_logprobs([*output.prompt_token_ids, *ids], [*prompt_rows, *rows], num_top, self._names)

    def _closing(
        self,
        choices: list[TextChoice],
        outputs: Sequence[RequestOutput],
        num_output: int,
        *,
        wants_usage: bool,
    ) -> TextCompletion:
        """A whole answer, or the last event of a stream."""
        usage = self._usage(outputs, num_output)
        self._state.usage = {"prompt_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens}
        receipts = [self._context.engine.receipt(output) for output in outputs]
        return TextCompletion(
            id=self._id,
            created=self._created,
            model=self._body.model,
            choices=choices,
            usage=usage if wants_usage else UNSET,
            system_fingerprint=self._context.engine.facts.fingerprint,
            metrics=(receipts[0] if len(receipts) == 1 else receipts) if self._body.return_receipt else UNSET,
        )

    def _usage(self, outputs: Sequence[RequestOutput], num_output: int) -> Usage:
        num_output = 0 if self._drops_output else num_output
        return usage_of(self._num_prompt, num_output, sum(one.num_cached_tokens for one in outputs))

    async def events(self, tickets: Sequence[Ticket], calls: Sequence[Call]) -> AsyncGenerator[bytes, None]:
        """An event per piece of text; the last one of an answer has its finish_reason."""
        body = self._body
        num_choices = len(calls) * self._n
        is_plain = body.logprobs is None and not body.return_token_ids and not self._is_continuous
        templates = [
            Template(self._chunk(TextChoice(index=index, text="@")))
            for index in range(num_choices if is_plain else 0)
        ]
        num_output = 0
        offsets = [0] * num_choices
        last: dict[int, RequestOutput] = {}
        async with open_news(self._context.engine, tickets, calls) as news:
            yield b"".join(
                event(self._chunk(TextChoice(index=index, text=self._echoed[index // self._n])))
                for index in range(num_choices if body.echo else 0)
            )
            async for number, piece in news:
                last[number] = piece
                for output in piece.outputs:
                    num_output += len(output.token_ids)
                    index = number * self._n + output.index
                    if is_plain and output.finish_reason is None:
                        if output.text and not self._drops_output:
                            yield templates[index].frame(output.text)
                        continue
                    choice = self._piece(index, output, offsets)
                    usage = self._usage(list(last.values()), num_output) if self._is_continuous else UNSET
                    yield event(self._chunk(choice, usage))
        outputs = [last[number] for number in sorted(last)]
        closing = self._closing([], outputs, num_output, wants_usage=self._wants_usage)
        if self._wants_usage or body.return_receipt:
            yield event(closing)
        yield DONE

    def _piece(self, index: int, output: CompletionOutput, offsets: list[int]) -> TextChoice:
        body = self._body
        ids, text = ([], "") if self._drops_output else (output.token_ids, output.text)
        logprobs = None
        if body.logprobs is not None:
            rows = output.logprobs or []
            logprobs = text_logprobs(ids, rows, body.logprobs, self._names, offset=offsets[index])
            offsets[index] += sum(map(self._names.num_shown, ids, logprobs.tokens))
        return TextChoice(
            index=index,
            text=text,
            logprobs=logprobs,
            finish_reason=output.finish_reason,
            stop_reason=UNSET if output.finish_reason is None else output.stop_reason,
            token_ids=ids if body.return_token_ids else UNSET,
        )

    def _chunk(self, choice: TextChoice, usage: Usage | UnsetType | None = UNSET) -> TextCompletion:
        if usage is UNSET and self._wants_usage:
            usage = None
        return TextCompletion(
            id=self._id,
            created=self._created,
            model=self._body.model,
            choices=[choice],
            usage=usage,
            system_fingerprint=self._context.engine.facts.fingerprint,
        )
