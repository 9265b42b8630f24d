"""LLM: the in-process face of the engine, as vLLM users know it. One thread; nothing runs between calls.

Text in, RequestOutput out. Refuses a bad call before any of its requests is queued; a call that ends early
(an error, Ctrl-C, a stream that is dropped) takes its requests out and leaves the engine usable.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from penstock.config import from_mapping
from penstock.engine.admission import Admission, default_params, eos_ids_of
from penstock.engine.answer import Answer
from penstock.engine.assemble import make_core
from penstock.engine.build import Loaded, load_model
from penstock.engine.interrupt import DeferredInterrupt
from penstock.engine.pooling import check_pooling
from penstock.engine.progress import show_progress
from penstock.engine.prompts import Conversation, Prompt, PromptReader, ReadPrompt
from penstock.errors import EngineError, InvalidRequestError
from penstock.request import (
    EmbeddingOutput,
    EmbeddingRequestOutput,
    Request,
    RequestOutput,
    SamplingParams,
)
from penstock.text.grammar import spec_of
from penstock.text.grammar_prover import GrammarProver
from penstock.text.grammar_tokens import vocabulary_of


@dataclass(frozen=True, slots=True)
class _Open:
    """A call under way: its answer so far, and its n requests by their index."""

    answer: Answer
    requests: Sequence[Request]


class LLM:
    """`LLM(model)`, where `model` is a folder, an embedded name or a Hugging Face id; options: EngineConfig.

    >>> LLM("penstock-tiny").generate("def fib(n):")[0].outputs[0].text  # doctest: +SKIP
    """

    def __init__(self, model: str, **options: Any) -> None:  # Any: checked by EngineConfig
        self._adopt(load_model(model, from_mapping(options)))

    @classmethod
    def from_loaded(cls, loaded: Loaded) -> "LLM":
        """An LLM over a model that is loaded already."""
        llm = cls.__new__(cls)
        llm._adopt(loaded)
        return llm

    def _adopt(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.tokenizer = loaded.tokenizer
        self.default_params = default_params(loaded.defaults)
        self.core = make_core(loaded)
        self._reader = PromptReader(loaded.tokenizer, loaded.chat_template)
        self._open: dict[str, tuple[_Open, int]] = {}  # by request id, with the index among the n
        self._num_calls = 0
        self._admission = Admission(
            tokenizer=loaded.tokenizer,
            vocab_size=loaded.spec.vocab_size,
            max_context=loaded.plan.max_context,
            eos_ids=eos_ids_of(loaded.defaults, loaded.tokenizer),
            seed=loaded.plan.seed,
            has_head=loaded.spec.has_head,
        )
        self._prover = GrammarProver(
            partial(vocabulary_of, loaded.tokenizer, loaded.spec.vocab_size, self._admission.eos_ids)
        )

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Continue each prompt; answers in the order of the prompts, whatever the order they end in.

        A prompt is a text or {"prompt_token_ids": [...]}. `sampling_params` is one for all, one for each,
        or None for what the model's authors suggest.
        """
        if not isinstance(prompts, Sequence | Mapping):
            raise InvalidRequestError(
                f"prompts is {type(prompts).__name__}; give a text, a dict, or a list of them.",
                param="prompts",
            )
        many: list[Prompt] = [prompts] if isinstance(prompts, str | Mapping) else list(prompts)
        params = self._params_for(len(many), sampling_params)
        read = [self._reader.read(prompt) for prompt in many]
        return self._run(read, params, use_tqdm=use_tqdm, priority=priority)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,  # Any: JSON schema
        chat_template_kwargs: Mapping[str, Any] | None = None,  # Any: what the template's author named
    ) -> list[RequestOutput]:
        """Answer one conversation or several, rendered by the checkpoint's chat template or the one given."""
        many = [messages] if messages and isinstance(messages[0], Mapping) else list(messages)
        params = self._params_for(len(many), sampling_params)
        read = [
            self._reader.read_conversation(
                conversation,  # type: ignore[arg-type]  # which of the two it is was asked above
                chat_template=chat_template,
                add_generation_prompt=add_generation_prompt,
                tools=tools,
                **(chat_template_kwargs or {}),
            )
            for conversation in many
        ]
        return self._run(read, params, use_tqdm=use_tqdm, priority=None)

    def embed(
        self, prompts: Prompt | Sequence[Prompt], *, pooling: str | None = None, use_tqdm: bool = True
    ) -> list[EmbeddingRequestOutput]:
        """The embedding of each prompt: the hidden state after the last norm, of its last token, its first
        ("cls") or the mean of all, by default as the checkpoint says; of length 1, unless it says otherwise.
        The bits depend on the prompt alone."""
        many: list[Prompt] = [prompts] if isinstance(prompts, str | Mapping) else list(prompts)
        read = [self._reader.read(prompt) for prompt in many]
        pooling = self.loaded.pooling.pooling if pooling is None else pooling
        check_pooling(pooling)
        calls = self._admit(read, [SamplingParams()] * len(read), priority=None, pooling=pooling)
        self._finish(calls, use_tqdm=use_tqdm)
        return [
            EmbeddingRequestOutput(
                call.answer.request_id,
                call.requests[0].prompt_tokens,
                EmbeddingOutput(np.frombuffer(call.answer.embedding or b"", np.float32).tolist()),
                num_cached_tokens=call.requests[0].num_cached_tokens,
            )
            for call in calls
        ]

    def stream(
        self, prompt: Prompt | Conversation, sampling_params: SamplingParams | None = None
    ) -> Iterator[RequestOutput]:
        """The answer piece by piece: each RequestOutput holds what is new. Dropping the iterator aborts.

        The call is checked here; it is queued when the first piece is asked for.
        """
        params = sampling_params or self.default_params
        if isinstance(prompt, str | Mapping):
            read = self._reader.read(prompt)
        else:
            read = self._reader.read_conversation(prompt)
        return self._pieces(self._admit([read], [params], priority=None)[0])

    def _pieces(self, call: _Open) -> Iterator[RequestOutput]:
        answer = call.answer
        try:
            self._queue([call])
            while not answer.finished or answer.has_news:
                while not answer.has_news:
                    self._step(DeferredInterrupt())
                yield answer.news()
        finally:
            self._drop([call])

    def _run(
        self,
        prompts: Sequence[ReadPrompt],
        params: Sequence[SamplingParams],
        *,
        use_tqdm: bool,
        priority: Sequence[int] | None,
    ) -> list[RequestOutput]:
        calls = self._admit(prompts, params, priority=priority)
        self._finish(calls, use_tqdm=use_tqdm)
        return [call.answer.news() for call in calls]

    def _finish(self, calls: Sequence[_Open], *, use_tqdm: bool) -> None:
        """Run them to their ends."""
        left = {id(call) for call in calls}
        try:
            self._queue(calls)
            interrupt = DeferredInterrupt()
            with interrupt.installed(), show_progress(len(calls), is_shown=use_tqdm) as advance:
                while left:
                    finished, num_tokens = self._step(interrupt)
                    mine = left & {id(call) for call in finished}
                    left -= mine
                    advance(len(mine), num_tokens)
        finally:
            self._drop(calls)

    def _admit(
        self,
        prompts: Sequence[ReadPrompt],
        params: Sequence[SamplingParams],
        *,
        priority: Sequence[int] | None,
        pooling: str = "",
    ) -> list[_Open]:
        """Check all prompts with their params, before any of their requests is queued."""
        priorities = [0] * len(prompts) if priority is None else list(priority)
        if len(priorities) != len(prompts):
            raise InvalidRequestError(
                f"{len(prompts)} prompts came with {len(priorities)} priorities; give one for each.",
                param="priority",
            )
        calls: list[_Open] = []
        for prompt, one, one_priority in zip(prompts, params, priorities, strict=True):
            grammar = spec_of(one.structured_outputs)
            if grammar is not None:
                self._prover.prove(grammar)
            call_id = str(self._num_calls)
            self._num_calls += 1
            requests = self._admission.admit(
                call_id,
                prompt.token_ids,
                one,
                arrival_s=self.core.clock(),
                priority=one_priority,
                cache_salt=prompt.cache_salt,
                pooling=pooling,
            )
            answer = Answer(
                call_id,
                list(requests[0].prompt_tokens),
                one,
                self.tokenizer,
                seed=requests[0].seed,
                arrival_s=requests[0].arrival_s,
                prompt=prompt.text,
                fingerprint=self.loaded.fingerprint,
            )
            calls.append(_Open(answer, requests))
        return calls

    def _queue(self, calls: Sequence[_Open]) -> None:
        """Queue all their requests. Where one is refused, `_drop` takes the others out again."""
        for call in calls:
            for index, request in enumerate(call.requests):
                self._open[request.request_id] = (call, index)
                self.core.add_request(request)

    def _step(self, interrupt: DeferredInterrupt) -> tuple[list[_Open], int]:
        """One engine step, for whoever waits: (calls that ended, new tokens), everybody's.

        A Ctrl-C during it rises when all tables are whole again.
        """
        finished: list[_Open] = []
        num_tokens = 0
        with interrupt:
            deltas = self.core.step()
            if deltas is None:
                raise EngineError(
                    "an answer waits for requests that have ended; this is a defect of penstock."
                )
            now_s = self.core.clock()
            for delta in deltas:
                found = self._open.get(delta.request_id)
                if found is None:
                    continue  # of a request that somebody queued in the core itself
                call, index = found
                gap_s = call.answer.take(index, delta, now_s)
                if gap_s is not None and len(call.requests) == 1:
                    call.answer.metrics.inter_token_s.append(gap_s)
                num_tokens += len(delta.tokens)
                if delta.finish_reason is not None and call.answer.finished:
                    finished.append(call)
        return finished, num_tokens

    def _drop(self, calls: Sequence[_Open]) -> None:
        """Forget these calls; what has not ended is aborted."""
        with DeferredInterrupt():
            for call in calls:
                for request in call.requests:
                    if self._open.pop(request.request_id, None) is not None:
                        self.core.abort(request.request_id)

    def _params_for(
        self, count: int, params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[SamplingParams]:
        if params is None:
            return [self.default_params] * count
        if isinstance(params, SamplingParams):
            return [params] * count
        if len(params) != count:
            raise InvalidRequestError(
                f"{count} prompts came with {len(params)} sampling_params; give one, or one for each.",
                param="sampling_params",
            )
        return list(params)
