"""LLM: the in-process face of the engine, as vLLM users know it. One thread; nothing runs between calls.

Text in, RequestOutput out. Refuses a bad call before any of its requests is queued; a call that ends early
(an error, Ctrl-C, a stream that is dropped) takes its requests out and leaves the engine usable.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from penstock.config import from_mapping
from penstock.engine.admission import Admission, default_params
from penstock.engine.answer import Answer
from penstock.engine.assemble import make_core
from penstock.engine.build import Loaded, load_model
from penstock.engine.interrupt import DeferredInterrupt
from penstock.engine.progress import show_progress
from penstock.engine.prompts import Conversation, Prompt, PromptReader, ReadPrompt
from penstock.errors import EngineError, InvalidRequestError
from penstock.request import RequestOutput, SamplingParams


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
        self._answers: dict[str, Answer] = {}
        self._num_calls = 0
        tokenizer_eos = () if loaded.tokenizer.eos_token_id is None else (loaded.tokenizer.eos_token_id,)
        self._admission = Admission(
            tokenizer=loaded.tokenizer,
            vocab_size=loaded.spec.vocab_size,
            max_context=loaded.plan.max_context,
            eos_ids=frozenset(loaded.defaults.eos_token_ids or tokenizer_eos),
            seed=loaded.plan.seed,
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

    def _pieces(self, answer: Answer) -> Iterator[RequestOutput]:
        try:
            self._queue([answer])
            while not answer.whole.finished or answer.has_news:
                while not answer.has_news:
                    self._step()
                yield answer.news()
        finally:
            self._drop([answer])

    def _run(
        self,
        prompts: Sequence[ReadPrompt],
        params: Sequence[SamplingParams],
        *,
        use_tqdm: bool,
        priority: Sequence[int] | None,
    ) -> list[RequestOutput]:
        answers = self._admit(prompts, params, priority=priority)
        left = {id(answer) for answer in answers}
        try:
            self._queue(answers)
            with show_progress(len(answers), is_shown=use_tqdm) as advance:
                while left:
                    finished, num_tokens = self._step()
                    mine = left & {id(answer) for answer in finished}
                    left -= mine
                    advance(len(mine), num_tokens)
        finally:
            self._drop(answers)
        return [answer.whole for answer in answers]

    def _admit(
        self,
        prompts: Sequence[ReadPrompt],
        params: Sequence[SamplingParams],
        *,
        priority: Sequence[int] | None,
    ) -> list[Answer]:
        """Check all prompts with their params, before any of their requests is queued."""
        priorities = [0] * len(prompts) if priority is None else list(priority)
        if len(priorities) != len(prompts):
            raise InvalidRequestError(
                f"{len(prompts)} prompts came with {len(priorities)} priorities; give one for each.",
                param="priority",
            )
        answers: list[Answer] = []
        for prompt, one, one_priority in zip(prompts, params, priorities, strict=True):
            call_id = str(self._num_calls)
            self._num_calls += 1
            requests = self._admission.admit(
                call_id,
                prompt.token_ids,
                one,
                arrival_s=self.core.clock(),
                priority=one_priority,
                cache_salt=prompt.cache_salt,
            )
            answers.append(
                Answer(
                    call_id,
                    requests,
                    self.tokenizer,
                    prompt=prompt.text,
                    fingerprint=self.loaded.fingerprint,
                )
            )
        return answers

    def _queue(self, answers: Sequence[Answer]) -> None:
        """Queue all their requests. Where one is refused, `_drop` takes the others out again."""
        for answer in answers:
            for request in answer.requests:
                self._answers[request.request_id] = answer
                self.core.add_request(request)

    def _step(self) -> tuple[list[Answer], int]:
        """One engine step, for whoever waits: (answers that ended, new tokens), everybody's.

        A Ctrl-C during it rises when all tables are whole again.
        """
        finished: list[Answer] = []
        num_tokens = 0
        with DeferredInterrupt():
            deltas = self.core.step()
            if deltas is None:
                raise EngineError(
                    "an answer waits for requests that have ended; this is a defect of penstock."
                )
            now_s = self.core.clock()
            for delta in deltas:
                answer = self._answers.get(delta.request_id)
                if answer is None:
                    continue  # of a request that somebody queued in the core itself
                answer.take(delta, now_s)
                num_tokens += len(delta.tokens)
                if delta.finish_reason is not None and answer.whole.finished:
                    finished.append(answer)
        return finished, num_tokens

    def _drop(self, answers: Sequence[Answer]) -> None:
        """Forget these answers; what has not ended is aborted."""
        with DeferredInterrupt():
            for answer in answers:
                for request in answer.requests:
                    if self._answers.pop(request.request_id, None) is not None:
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
