"""One user call's answer, put together from the deltas of its n requests. Called by the engine's faces.

Text, decoded logprobs and times are made here, so that the engine core knows none of them.
"""

from collections.abc import Sequence

from penstock.engine.output_text import OutputText
from penstock.request import CompletionOutput, Logprob, Request, RequestMetrics, RequestOutput
from penstock.step import RequestDelta
from penstock.text.tokenizer import Tokenizer

PlainLogprobs = dict[int, tuple[float, int]]


class Answer:
    """Fed with deltas; gives the whole so far (`whole`) or what is new since last asked (`news`)."""

    def __init__(
        self,
        request_id: str,
        requests: Sequence[Request],
        tokenizer: Tokenizer,
        *,
        prompt: str | None,
        fingerprint: str,
    ) -> None:
        first = requests[0]
        self._tokenizer = tokenizer
        self._params = first.params
        self._index = {request.request_id: i for i, request in enumerate(requests)}
        self.requests = tuple(requests)
        self._texts = [OutputText(tokenizer, request.params) for request in requests]
        self._news = [self._empty(i) for i in range(len(requests))]
        self._prompt_logprobs: list[dict[int, Logprob] | None] | None = (
            None if first.params.prompt_logprobs is None else [None]
        )
        self.whole = RequestOutput(
            request_id=request_id,
            prompt=prompt,
            prompt_token_ids=list(first.prompt_tokens),
            prompt_logprobs=None,
            outputs=[self._empty(i) for i in range(len(requests))],
            finished=False,
            metrics=RequestMetrics(first.arrival_s),
            seed=first.seed,
            system_fingerprint=fingerprint,
        )

    @property
    def has_news(self) -> bool:
        return any(o.token_ids or o.text or o.finish_reason is not None for o in self._news)

    def take(self, delta: RequestDelta, now_s: float) -> None:
        """Add what one step did for one of the requests."""
        index = self._index[delta.request_id]
        request = self.requests[index]
        if index == 0 and delta.prompt_logprobs and self._prompt_logprobs is not None:
            self._prompt_logprobs += [self._decoded(row) for row in delta.prompt_logprobs]
        text = self._text_of(index, delta)
        stop_reason, finish_reason = delta.stop_reason, delta.finish_reason
        if finish_reason == "length" and self._texts[index].stop is not None:
            finish_reason, stop_reason = "stop", self._texts[index].stop  # found in the very last bytes
        logprobs = None if delta.logprobs is None else [self._decoded(row) for row in delta.logprobs]
        for output in (self.whole.outputs[index], self._news[index]):
            output.text += text
            output.token_ids += delta.tokens
            output.finish_reason, output.stop_reason = finish_reason, stop_reason
            if logprobs is not None and output.logprobs is not None:
                output.logprobs += logprobs
        if delta.logprobs is not None:
            self._add_cumulative(index, delta.tokens, delta.logprobs)
        self._measure(request, delta, now_s)
        if finish_reason is not None and all(o.finish_reason for o in self.whole.outputs):
            self.whole.finished = True
            self.whole.prompt_logprobs = self._prompt_logprobs

    def news(self) -> RequestOutput:
        """What came since last asked: outputs hold new text and tokens alone; empty ones are left out."""
        whole = self.whole
        outputs = [o for o in self._news if o.token_ids or o.text or o.finish_reason is not None]
        for output in outputs:
            output.cumulative_logprob = whole.outputs[output.index].cumulative_logprob
            self._news[output.index] = self._empty(output.index)
        return RequestOutput(
            request_id=whole.request_id,
            prompt=whole.prompt,
            prompt_token_ids=whole.prompt_token_ids,
            prompt_logprobs=whole.prompt_logprobs,
            outputs=outputs,
            finished=whole.finished,
            metrics=whole.metrics,
            seed=whole.seed,
            system_fingerprint=whole.system_fingerprint,
            num_cached_tokens=whole.num_cached_tokens,
        )

    def _empty(self, index: int) -> CompletionOutput:
        wants_logprobs = self._params.logprobs is not None
        return CompletionOutput(
            index=index,
            text="",
            token_ids=[],
            cumulative_logprob=0.0 if wants_logprobs else None,
            logprobs=[] if wants_logprobs else None,
        )

    def _text_of(self, index: int, delta: RequestDelta) -> str:
        """New text; the stop id that ends a request is no text, unless it is to be included."""
        text = self._texts[index]
        tokens = delta.tokens
        if delta.finish_reason is None and len(tokens) == 1 and text.stop is None:
            return text.feed(tokens[0])
        ended_by_id = delta.finish_reason == "stop" and not isinstance(delta.stop_reason, str)
        if ended_by_id and not self._params.include_stop_str_in_output:
            tokens = tokens[:-1]
        pieces = [text.feed(token) for token in tokens if text.stop is None]
        if delta.finish_reason is not None:
            pieces.append(text.finish())
        return "".join(pieces)

    def _decoded(self, row: PlainLogprobs) -> dict[int, Logprob]:
        return {
            token: Logprob(logprob, rank, self._tokenizer.token_text(token))
            for token, (logprob, rank) in row.items()
        }

    def _add_cumulative(self, index: int, tokens: Sequence[int], logprobs: Sequence[PlainLogprobs]) -> None:
        output = self.whole.outputs[index]
        drawn = sum(row[token][0] for token, row in zip(tokens, logprobs, strict=True))
        output.cumulative_logprob = (output.cumulative_logprob or 0.0) + drawn

    def _measure(self, request: Request, delta: RequestDelta, now_s: float) -> None:
        """Times are those of the first of n to have each; cached tokens are counted over all of them."""
        metrics = self.whole.metrics
        is_first = metrics.first_token_s is None
        if metrics.first_scheduled_s is None:
            metrics.first_scheduled_s = request.first_scheduled_s
        if delta.tokens:
            if is_first:
                metrics.first_token_s = now_s
            elif metrics.last_token_s is not None and len(self.requests) == 1:
                metrics.inter_token_s.append(now_s - metrics.last_token_s)
            metrics.last_token_s = now_s
        if is_first or delta.finish_reason is not None:
            metrics.num_cached_tokens = sum(r.num_cached_tokens for r in self.requests)
            metrics.num_preemptions = sum(r.num_preemptions for r in self.requests)
            self.whole.num_cached_tokens = metrics.num_cached_tokens
