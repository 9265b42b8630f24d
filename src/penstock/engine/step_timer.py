"""How long a step should take, learned from those before it. Sits between engine core and executor.

The prediction is what the heartbeat tells: a supervisor takes an engine for hung only well beyond it.
"""

import time
from collections.abc import Mapping

from penstock.engine.liveness import Vitals
from penstock.step import Executor, StepInput, StepOutput

SLOWEST_FLOPS = 2e10  # per second, for the first step alone, of which nothing is known yet
WEIGHT = 0.2  # of the latest step in the running means


class StepTimer:
    """An executor that keeps time. `predict` takes the larger of a usual step and so many usual tokens."""

    def __init__(self, vitals: Vitals, executor: Executor, *, weight_bytes: int) -> None:
        self._vitals = vitals
        self._executor = executor
        self._step_s = 0.0
        self._token_s = weight_bytes / SLOWEST_FLOPS  # 2 bytes and 2 operations per weight and token

    def predict(self, num_tokens: int) -> float:
        return max(self._step_s, num_tokens * self._token_s)

    def forward(self, step: StepInput) -> StepOutput:
        num_tokens = len(step.tokens)
        self._vitals.predicted_s = self.predict(num_tokens)
        began_s = time.monotonic()
        output = self._executor.forward(step)
        self._learn(num_tokens, time.monotonic() - began_s)
        return output

    def describe(self) -> Mapping[str, str]:
        return self._executor.describe()

    def _learn(self, num_tokens: int, took_s: float) -> None:
        first = self._vitals.num_steps == 0
        self._vitals.num_steps += 1
        token_s = took_s / max(1, num_tokens)
        if first:
            self._step_s, self._token_s = took_s, token_s
            return
        self._step_s += WEIGHT * (took_s - self._step_s)
        self._token_s += WEIGHT * (token_s - self._token_s)
