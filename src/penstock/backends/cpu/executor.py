"""The cpu executor: owns the KV pools, the thread pool and the recorded program; one native call per step."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from penstock import _native
from penstock.backends.cpu.lower import Limits, Lowering, kv_pool_bytes
from penstock.errors import BackendError
from penstock.model.program import Program
from penstock.step import StepInput, StepOutput
from penstock.weights.arena import reserve
from penstock.weights.loader import LoadedWeights


def choose_isa(forced: str | None) -> str:
    """The forced ISA if this build and machine have it, else the best one."""
    if forced is None:
        best: str = _native.best_isa()
        return best
    isa = forced.replace("-", "_")
    if isa not in _native.isas():
        raise BackendError(
            f"PENSTOCK_ISA={forced}: this machine runs {', '.join(_native.isas())}; "
            "choose one of these or unset it."
        )
    return isa


_BREAKS = {"linear": 1, "attention": 2}  # sums that depend on the number of rows; a KV split on the context


def break_on_purpose(what: str | None) -> None:
    """Let a row's bits depend on its neighbours, from now on and in every executor. None: change nothing."""
    if what is None:
        return
    if what not in _BREAKS:
        raise BackendError(
            f"PENSTOCK_BREAK={what}: what can be broken is {', '.join(_BREAKS)}; unset it to compute right."
        )
    _native.set_break(_BREAKS[what])


class CpuExecutor:
    """Executor of step.py over native kernels. Not thread-safe: one caller at a time."""

    def __init__(
        self, program: Program, weights: LoadedWeights, limits: Limits, *, isa: str, pool: "_native.Pool"
    ) -> None:
        self.kv_pools = [reserve(size) for size in kv_pool_bytes(program, limits.num_blocks)]
        self._lowering = Lowering(program, weights, self.kv_pools, limits, isa=isa, pool=pool)
        self._native = self._lowering.native
        self._isa = isa
        self._pool = pool
        last = ("sampled",) if program.spec.has_head else ()
        self._outputs = (*(call.output for call in program.calls), *last)
        self._counting = np.arange(limits.max_rows, dtype=np.int32)
        self._asked = np.zeros(0, np.int32)  # num_logprobs of the step before
        self._columns = 0  # the highest of them

    def forward(self, step: StepInput) -> StepOutput:
        rows = step.sampling
        num_requests = len(step.context_len)
        num_logit_rows = len(step.logit_rows)
        row_request = self._counting[:num_requests]
        if len(step.tokens) != num_requests:
            row_request = np.repeat(row_request, np.diff(step.query_start))
        if rows.num_logprobs is not self._asked:
            self._asked = rows.num_logprobs
            self._columns = max(0, int(self._asked.max(initial=0)))
        sampled = np.empty(num_logit_rows, np.int32)
        logprob = np.empty(num_logit_rows, np.float32)
        rank = np.empty(num_logit_rows, np.int32)
        top_token = np.empty((num_logit_rows, self._columns), np.int32)
        top_logprob = np.empty((num_logit_rows, self._columns), np.float32)
        hidden_rows = step.hidden_rows if "hidden" in step.taps else None
        self._native.run(
            step.tokens, step.positions, step.query_start, step.context_len, row_request,
            list(step.block_tables), step.logit_rows, rows.temperature, rows.top_k, rows.top_p, rows.min_p,
            rows.typical_p, rows.repetition_penalty, rows.presence_penalty, rows.frequency_penalty, rows.seed,
            rows.position, rows.target, rows.num_logprobs, rows.history_start, rows.history_token,
            rows.history_count, rows.bias_start, rows.bias_token, rows.bias_value, rows.allowed, sampled,
            logprob, rank, top_token, top_logprob, step.parents, list(step.moves), hidden_rows,
        )  # fmt: skip
        taps: dict[str, np.ndarray] = {}
        if "logits" in step.taps:
            taps["logits"] = self._native.read(self._lowering.logits, num_logit_rows)
        if hidden_rows is not None:
            taps["hidden"] = self._native.read(self._lowering["hidden"], len(hidden_rows))
        return StepOutput(sampled, logprob, rank, top_token, top_logprob, taps)

    def describe(self) -> Mapping[str, str]:
        return {"backend": "cpu", "isa": self._isa, "threads": str(self._pool.workers), "ops": "all native"}

    def residency(self) -> NDArray[np.int64]:
        """[layers, 3]: experts found in memory, missing, missing but asked for ahead; since the start.

        Layers whose experts are not all resident.
        """
        counts: NDArray[np.int64] = self._native.residency()
        return counts

    def set_profiling(self, num_steps: int) -> None:
        """Keep the times of every op in the last `num_steps` steps from now on; 0: read no clock."""
        self._native.set_profiling(num_steps)

    def profile(self) -> tuple[Sequence[str], NDArray[np.int64]]:
        """Outputs of the calls, in order, the sampler's last; `ns[S,O,2]` of the steps kept, oldest first.

        [..., 0] is what the calling worker did itself, [..., 1] ends when every worker was done, so that the
        latter add up to the step. The call of the hidden rows, idle in most steps, is left out.
        """
        ns = np.add.reduceat(self._native.profile(), self._lowering.first_ops, axis=1)
        return self._outputs, np.delete(ns, self._lowering.hidden_place, axis=1)
