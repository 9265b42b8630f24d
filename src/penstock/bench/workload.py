"""Runs requests of random tokens through an engine and times its steps, forward and Python apart."""

import random
import statistics
import time
from dataclasses import dataclass, field, replace

from penstock.engine.build import Loaded
from penstock.engine.llm import LLM
from penstock.request import SamplingParams
from penstock.step import Executor, StepInput, StepOutput


@dataclass(slots=True)
class TimedExecutor:
    """An executor that writes down how many rows each step had and how long it took."""

    inner: Executor
    steps: list[tuple[int, float]] = field(default_factory=list)

    def forward(self, step: StepInput) -> StepOutput:
        start = time.perf_counter()
        output = self.inner.forward(step)
        self.steps.append((len(step.tokens), time.perf_counter() - start))
        return output

    def describe(self) -> dict[str, str]:
        return dict(self.inner.describe())


@dataclass(frozen=True, slots=True)
class Decode:
    """Medians over the steps in which every request got one token."""

    batch: int
    context: int
    step_s: float
    forward_s: float

    @property
    def tokens_per_s(self) -> float:
        return self.batch / self.step_s

    @property
    def python_s(self) -> float:
        """Schedule, build the input, update, detokenize: what is not the native call."""
        return self.step_s - self.forward_s


class Bench:
    """One loaded model under a stopwatch."""

    def __init__(self, loaded: Loaded, seed: int = 0) -> None:
        self.loaded = loaded
        self._timed = TimedExecutor(loaded.executor)
        self.llm = LLM.from_loaded(replace(loaded, executor=self._timed))
        self._random = random.Random(seed)

    def prompts(self, count: int, num_tokens: int) -> list[dict[str, list[int]]]:
        """Fresh random prompts: nothing of one is in the prefix cache when it comes."""
        vocab = self.loaded.spec.vocab_size
        return [
            {"prompt_token_ids": [self._random.randrange(vocab) for _ in range(num_tokens)]}
            for _ in range(count)
        ]

    def prefill(self, num_tokens: int, repeats: int) -> list[float]:
        """Seconds to the first token of one prompt, alone; one value per repeat."""
        params = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True)
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            self.llm.generate(self.prompts(1, num_tokens), params, use_tqdm=False)  # type: ignore[arg-type]
            times.append(time.perf_counter() - start)
        return times

    def decode(self, batch: int, context: int, num_tokens: int) -> Decode:
        """`batch` requests of `context` prompt tokens that each draw `num_tokens`, greedy."""
        params = SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True)
        self._timed.steps.clear()
        marks: list[float] = []
        step = self.llm._step  # noqa: SLF001 the loop's own beat, detokenizing included

        def marked() -> None:
            start = time.perf_counter()
            step()
            marks.append(time.perf_counter() - start)

        self.llm._step = marked  # type: ignore[method-assign]  # noqa: SLF001
        try:
            self.llm.generate(self.prompts(batch, context), params, use_tqdm=False)  # type: ignore[arg-type]
        finally:
            del self.llm._step  # noqa: SLF001
        whole = [
            (mark, forward)
            for mark, (rows, forward) in zip(marks, self._timed.steps, strict=True)
            if rows == batch
        ]
        whole = whole[1:-1] or whole  # the first and last decode step begin and end requests
        return Decode(
            batch=batch,
            context=context + num_tokens // 2,
            step_s=statistics.median(mark for mark, _ in whole),
            forward_s=statistics.median(forward for _, forward in whole),
        )
