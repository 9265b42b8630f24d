"""Runs requests of random tokens through an engine and times its steps, forward and Python apart.

Used by the bench verbs. Prompts never repeat, so that the prefix cache gives nothing away.
"""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from penstock.engine.build import Loaded
from penstock.engine.llm import LLM
from penstock.engine.prompts import Prompt
from penstock.request import SamplingParams
from penstock.step import Executor, StepInput, StepOutput

PROFILED_STEPS = 4096


@dataclass(frozen=True, slots=True)
class Step:
    """When one forward pass began and ended, on one clock, and what it was."""

    num_rows: int
    num_logit_rows: int
    context_len: NDArray[np.int32]
    begin_s: float
    end_s: float

    @property
    def context(self) -> float:
        """Mean length of its requests, its own rows included."""
        return float(self.context_len.mean())


@dataclass(slots=True)
class TimedExecutor:
    """An executor that writes down its steps, and computes nothing: its own time counts as Python's."""

    inner: Executor
    steps: list[Step] = field(default_factory=list)

    def forward(self, step: StepInput) -> StepOutput:
        begin_s = time.perf_counter()
        output = self.inner.forward(step)
        end_s = time.perf_counter()
        self.steps.append(Step(len(step.tokens), len(step.logit_rows), step.context_len, begin_s, end_s))
        return output

    def describe(self) -> Mapping[str, str]:
        return self.inner.describe()


@dataclass(frozen=True, slots=True)
class Decode:
    """Medians over the steps in which every request got one token; `context` is their mean length."""

    batch: int
    context: int
    step_s: float
    forward_s: float

    @property
    def tokens_per_s(self) -> float:
        return self.batch / self.step_s

    @property
    def python_s(self) -> float:
        """Schedule, build the input, update, detokenize: what lies between two forward passes."""
        return self.step_s - self.forward_s


class Bench:
    """One loaded model under a stopwatch."""

    def __init__(self, loaded: Loaded, seed: int = 0) -> None:
        self.loaded = loaded
        self._timed = TimedExecutor(loaded.executor)
        self.llm = LLM.from_loaded(replace(loaded, executor=self._timed))
        self._random = random.Random(seed)

    def prompts(self, count: int, num_tokens: int) -> list[Prompt]:
        """Fresh random prompts: nothing of one is in the prefix cache when it comes."""
        vocab_size = self.loaded.spec.vocab_size
        return [
            {"prompt_token_ids": [self._random.randrange(vocab_size) for _ in range(num_tokens)]}
            for _ in range(count)
        ]

    def prefill(self, num_tokens: int, repeats: int) -> list[float]:
        """Seconds to the first token of one prompt, alone; one value per repeat."""
        params = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True)
        times = []
        for prompt in self.prompts(repeats, num_tokens):
            begin_s = time.perf_counter()
            self.llm.generate(prompt, params, use_tqdm=False)
            times.append(time.perf_counter() - begin_s)
        return times

    def decode(self, batch: int, context: int, num_tokens: int) -> Decode:
        """`batch` requests of `context` prompt tokens; `num_tokens` (at least 4) steps with all of them."""
        num_drawn = num_tokens + self.num_prefill_steps(batch, context)
        params = SamplingParams(max_tokens=num_drawn, temperature=0, ignore_eos=True)
        return decode_of(self.steps_of(self.prompts(batch, context), params), batch)

    def steps_of(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[Step]:
        """Every step of one `generate`."""
        self._timed.steps.clear()
        self.llm.generate(prompts, params, use_tqdm=False)
        return list(self._timed.steps)

    def profile_decode(self, batch: int, context: int, num_tokens: int) -> NDArray[np.int64]:
        """ns[S,O,2] of the steps in which every request got one token (backends/cpu/executor.py)."""
        ns = self._profile(lambda: self.decode(batch, context, num_tokens))
        is_whole = [step.num_rows == step.num_logit_rows == batch for step in self._timed.steps]
        return np.compress(is_whole, ns, axis=0)

    def profile_prefill(self, num_tokens: int) -> NDArray[np.int64]:
        """ns[1,O,2]: all steps of one prompt, added up."""
        ns = self._profile(lambda: self.prefill(num_tokens, 1))
        total: NDArray[np.int64] = ns.sum(axis=0, keepdims=True)
        return total

    def _profile(self, run: Callable[[], object]) -> NDArray[np.int64]:
        from penstock.backends.cpu.executor import CpuExecutor  # not there without a native build

        executor = self.loaded.executor
        assert isinstance(executor, CpuExecutor), "only the native runtime has a profile"
        executor.set_profiling(PROFILED_STEPS)
        try:
            run()
            return executor.profile()[1]
        finally:
            executor.set_profiling(0)

    def num_prefill_steps(self, batch: int, context: int) -> int:
        """While the last prompts are read, the first requests draw tokens already: no step to be timed."""
        num_free_rows = max(1, self.loaded.plan.max_step_tokens - batch)
        return -(-batch * context // num_free_rows)


def decode_of(steps: list[Step], batch: int) -> Decode:
    """A step lasts from the beginning of its forward pass to that of the next; the last one is left out.

    >>> lengths = [np.array([n, n], np.int32) for n in (4, 5, 6)]
    >>> times = [(8, 0.0, 0.5), (2, 1.0, 1.2), (2, 1.3, 1.5)]
    >>> steps = [Step(rows, 2, n, *when) for n, (rows, *when) in zip(lengths, times, strict=True)]
    >>> decode = decode_of(steps, 2)
    >>> round(decode.step_s, 3), round(decode.python_s, 3), decode.context
    (0.3, 0.1, 5)
    """
    pairs = [
        (one, following.begin_s - one.begin_s)
        for one, following in pairwise(steps)
        if one.num_rows == one.num_logit_rows == following.num_rows == batch
    ]
    assert pairs, "enough tokens are drawn for several steps with every request in them"
    return Decode(
        batch=batch,
        context=round(statistics.fmean(one.context for one, _ in pairs)),
        step_s=statistics.median(whole_s for _, whole_s in pairs),
        forward_s=statistics.median(one.end_s - one.begin_s for one, _ in pairs),
    )
