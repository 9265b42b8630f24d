"""One user call's answer, put together from the deltas of its n requests. Called by the engine's faces.

Text, decoded logprobs and times are made here, so that the engine core knows none of them; only the text of
requests with stop strings comes with the deltas, because whoever finds the stop has decoded it already.
"""

from collections.abc import Sequence

from penstock.request import CompletionOutput, Logprob, RequestMetrics, RequestOutput, SamplingParams
from penstock.step import RequestDelta
from penstock.text.detokenizer import Detokenizer
from penstock.text.tokenizer import Tokenizer

PlainLogprobs = dict[int, tuple[float, int]]


class _Choice:
    """What one of the n requests has given since last asked. Tokens become text when somebody asks."""

    __slots__ = (
        "cumulative_logprob",
        "detokenizer",
        "ends_with_stop_id",
        "finish_reason",
        "is_told",
        "last_token_s",
        "logprobs",
        "num_cached_tokens",
        "num_preemptions",
        "stop_reason",
        "text",
        "tokens",
    )

    def __init__(self, *, wants_logprobs: bool) -> None:
        self.tokens: list[int] = []
        self.text = ""  # decoded by the engine
        self.logprobs: list[PlainLogprobs] | None = [] if wants_logprobs else None
        self.cumulative_logprob = 0.0 if wants_logprobs else None
        self.detokenizer: Detokenizer | None = None
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self.ends_with_stop_id = False
        self.is_told = False  # that it has ended
        self.last_token_s: float | None = None
        self.num_cached_tokens = 0
        self.num_preemptions = 0

    @property
    def has_news(self) -> bool:
        return bool(self.tokens) or (self.finish_reason is not None and not self.is_told)


class Answer:
    """Fed with deltas; `news` gives what came since last asked: everything, where nobody asked before."""

    __slots__ = (
        "_choices",
        "_fingerprint",
        "_num_open",
        "_params",
        "_prompt",
        "_prompt_logprobs",
        "_prompt_tokens",
        "_seed",
        "_tokenizer",
        "embedding",
        "metrics",
        "request_id",
    )

    def __init__(
        self,
        request_id: str,
        prompt_tokens: Sequence[int],
        params: SamplingParams,
        tokenizer: Tokenizer,
        *,
        seed: int,
        arrival_s: float,
        prompt: str | None,
        fingerprint: str,
    ) -> None:
        self.request_id = request_id
        self.metrics = RequestMetrics(arrival_s)
        self._prompt_tokens = prompt_tokens
        self._params = params
        self._tokenizer = tokenizer
        self._seed = seed
        self._prompt = prompt
        self._fingerprint = fingerprint
        self._choices = [_Choice(wants_logprobs=params.logprobs is not None) for _ in range(params.n)]
        self._num_open = params.n
        self._prompt_logprobs: list[PlainLogprobs] = []
        self.embedding: bytes | None = None

    @property
    def finished(self) -> bool:
        return self._num_open == 0

    @property
    def finish_reason(self) -> str | None:
        """Why the first of n ended; None while it goes on."""
        return self._choices[0].finish_reason

    @property
    def has_news(self) -> bool:
        return any(choice.has_news for choice in self._choices)

    def take(self, index: int, delta: RequestDelta, now_s: float) -> float | None:
        """Add what one step did for the request of this index. Gives the seconds since its last tokens."""
        choice = self._choices[index]
        choice.tokens += delta.tokens
        if delta.text is not None:
            choice.text += delta.text
        if delta.logprobs is not None and choice.logprobs is not None:
            choice.logprobs += delta.logprobs
            drawn = sum(row[token][0] for token, row in zip(delta.tokens, delta.logprobs, strict=True))
            choice.cumulative_logprob = (choice.cumulative_logprob or 0.0) + drawn
        if delta.prompt_logprobs and index == 0:
            self._prompt_logprobs += delta.prompt_logprobs
        if delta.embedding is not None:
            self.embedding = delta.embedding
        if delta.finish_reason is not None:
            choice.finish_reason, choice.stop_reason = delta.finish_reason, delta.stop_reason
            choice.ends_with_stop_id = delta.ends_with_stop_id
            self._num_open -= 1
        return self._measure(choice, delta, now_s)

    def news(self) -> RequestOutput:
        """What came since last asked: outputs hold new text and tokens alone; empty ones are left out."""
        outputs = [self._output(i, choice) for i, choice in enumerate(self._choices) if choice.has_news]
        return RequestOutput(
            request_id=self.request_id,
            prompt=self._prompt,
            prompt_token_ids=self._prompt_tokens,
            prompt_logprobs=self._all_prompt_logprobs() if self.finished else None,
            outputs=outputs,
            finished=self.finished,
            metrics=self.metrics,
            seed=self._seed,
            system_fingerprint=self._fingerprint,
            num_cached_tokens=self.metrics.num_cached_tokens,
        )

    def _output(self, index: int, choice: _Choice) -> CompletionOutput:
        text = self._text_of(choice)
        logprobs = None if choice.logprobs is None else [self._decoded(row) for row in choice.logprobs]
        output = CompletionOutput(
            index=index,
            text=text,
            token_ids=choice.tokens,
            cumulative_logprob=choice.cumulative_logprob,
            logprobs=logprobs,
            finish_reason=choice.finish_reason,
            stop_reason=choice.stop_reason,
        )
        choice.tokens, choice.text = [], ""
        choice.logprobs = None if logprobs is None else []
        choice.is_told = choice.finish_reason is not None
        return output

    def _text_of(self, choice: _Choice) -> str:
        """New text; the stop id that ends a request is no text, unless it is to be included."""
        if self._params.stop:
            return choice.text
        detokenizer = choice.detokenizer
        if detokenizer is None:
            detokenizer = choice.detokenizer = Detokenizer(
                self._tokenizer, skip_special=self._params.skip_special_tokens
            )
        shown = choice.tokens
        if choice.ends_with_stop_id and not self._params.include_stop_str_in_output:
            shown = shown[:-1]
        text = detokenizer.feed(shown)
        return text if choice.finish_reason is None else text + detokenizer.flush()

    def _decoded(self, row: PlainLogprobs) -> dict[int, Logprob]:
        return {
            token: Logprob(logprob, rank, self._tokenizer.token_text(token))
            for token, (logprob, rank) in row.items()
        }

    def _all_prompt_logprobs(self) -> list[dict[int, Logprob] | None] | None:
        if self._params.prompt_logprobs is None:
            return None
        return [None, *(self._decoded(row) for row in self._prompt_logprobs)]

    def _measure(self, choice: _Choice, delta: RequestDelta, now_s: float) -> float | None:
        """Times are those of the first of n to have each; cached tokens are counted over all of them.

        What a request's first delta says of its start holds: a replay starts it again, and is no news.
        """
        metrics = self.metrics
        if metrics.first_scheduled_s is None:
            metrics.first_scheduled_s = delta.first_scheduled_s
        if not delta.tokens:
            return None
        metrics.num_output_tokens += len(delta.tokens)
        gap_s = None if choice.last_token_s is None else now_s - choice.last_token_s
        if gap_s is None:
            choice.num_cached_tokens = delta.num_cached_tokens
            metrics.num_cached_tokens = sum(c.num_cached_tokens for c in self._choices)
        if delta.num_preemptions != choice.num_preemptions:
            choice.num_preemptions = delta.num_preemptions
            metrics.num_preemptions = sum(c.num_preemptions for c in self._choices)
        if metrics.first_token_s is None:
            metrics.first_token_s = now_s
        choice.last_token_s = metrics.last_token_s = now_s
        return gap_s
