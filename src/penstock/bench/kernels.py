"""Every kernel x format x number of rows, beside what the machine gives in the same moments.

A case is one step of a made-up stack (bench/stack.py) whose weights are beyond every cache, run by the
product's own runtime; the profile ring says what each kernel took. The machine's limits are probed between
any two steps, by the same workers over the same memory, and each step is held against the probes around it:
what a shared machine does to both cancels.
"""

import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock import _native
from penstock.backends.cpu.probe import Measured, Probe
from penstock.bench.breakdown import Kernel, Shape, kernels_of, peak
from penstock.bench.stack import MAX_LOGIT_ROWS, Stack, make_stack, num_layers_of
from penstock.request import SamplingParams
from penstock.sampling.rows import RowRequest

QUANTIZED = ("int8", "int4_g32", "int4_g64", "int4_g128")
CODES = ("int8_g32", "int4_g32_min", "int4_g128_zero")  # of Q8_0, of Q4_1, of GPTQ and AWQ
FORMATS = ("float32", "float16", "bfloat16", *QUANTIZED, *CODES)
FAITHFUL = ("int8_g32", "int4_g32", "int4_g128_zero")  # the same codes under the BF16 contract, as by default
ROWS = (1, 2, 4, 8, 16, 32, 128, 512)
MAX_DECODE_ROWS = 32  # more rows are one prompt
DECODE_CONTEXT = 128
CONTEXTS = (
    (1, 1, 512),
    (1, 1, 2048),
    (1, 1, 8192),
    (8, 1, 2048),
    (1, 512, 512),
    (1, 512, 2048),
    (1, 512, 8192),
)
WEIGHT_BYTES = (1 << 30) + (1 << 26)
ATTENTION_LAYERS = 8

GREEDY = SamplingParams(temperature=0.0)
SAMPLERS: Mapping[str, SamplingParams] = {
    "greedy": GREEDY,
    "temperature 1": SamplingParams(temperature=1.0),
    "top-p 0.9": SamplingParams(temperature=1.0, top_p=0.9),
    "top-k 50, top-p 0.9": SamplingParams(temperature=0.8, top_k=50, top_p=0.9),
    "min-p 0.05": SamplingParams(temperature=1.0, min_p=0.05),
    "all": SamplingParams(
        temperature=0.8, top_k=50, top_p=0.9, min_p=0.02, repetition_penalty=1.1, presence_penalty=0.1,
        frequency_penalty=0.1,
    ),
    "all, no top-k, temperature 1": SamplingParams(
        temperature=1.0, top_p=0.95, min_p=0.01, repetition_penalty=1.1, presence_penalty=0.1,
        frequency_penalty=0.1,
    ),
}  # fmt: skip
LOGIT_SCALES = {"flat": 1.0, "peaked": 12.0}  # of the last norm; at 1, logits have a deviation of 0.9
NUM_LOGPROBS = 5

Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class Case:
    """One step, and which of its kernels are wanted from it."""

    name: str
    weight_format: str
    rows: int
    context: int
    kv_dtype: str
    num_requests: int
    sampler: str = "greedy"
    logits: str = "flat"
    wants: tuple[str, ...] = ()  # beginnings of kernel names; (): all
    activations: str = "int8"  # of formats that come in two contracts

    @property
    def num_sampled(self) -> int:
        return min(self.num_requests, MAX_LOGIT_ROWS)


@dataclass(slots=True)
class Timed:
    """ns[S,O,2] of the steps, and the machine's limits around each."""

    kernels: list[Kernel]
    ns: NDArray[np.int64]
    around: list[Measured]
    steal: float  # share of processor time that the host gave to others


def cases(pattern: str = "") -> list[Case]:
    """All cases in whose name the regular expression is found."""
    made = [_linear_case(weight_format, rows) for weight_format in FORMATS for rows in ROWS]
    made += [_faithful(_linear_case(weight_format, rows)) for weight_format in FAITHFUL for rows in ROWS]
    for dtype in ("bfloat16", "float32"):
        made += [
            Case(f"attention {dtype} rows={n * rows} context={context}", "int8", n * rows, context, dtype, n,
                 wants=("attention",))
            for n, rows, context in CONTEXTS
        ]  # fmt: skip
    made += [
        Case(f"sampler {logits}: {name}", "int8", 1, DECODE_CONTEXT, "bfloat16", 1, name, logits, ("sample",))
        for logits in LOGIT_SCALES
        for name in SAMPLERS
    ]
    return [case for case in made if re.search(pattern, case.name)]


def _linear_case(weight_format: str, rows: int) -> Case:
    is_decode = rows <= MAX_DECODE_ROWS
    kv_dtype = "float32" if weight_format in ("float32", "float16") else "bfloat16"
    return Case(
        f"{weight_format} rows={rows}",
        weight_format,
        rows,
        DECODE_CONTEXT if is_decode else rows,
        kv_dtype,
        rows if is_decode else 1,
    )


def _faithful(case: Case) -> Case:
    return replace(case, name=f"faithful {case.name}", activations="bfloat16")


class KernelBench:
    """Runs cases in order; a stack is kept as long as the cases ask for the same one."""

    def __init__(self, isa: str, threads: int, repeats: int) -> None:
        self._isa, self._repeats = isa, repeats
        self._pool = _native.Pool(threads)
        self._stack: tuple[tuple[str, str, str, bool], Stack, Probe] | None = None

    def run(self, wanted: Sequence[Case]) -> Iterator[tuple[Case, Timed]]:
        for case in wanted:
            yield case, self._time(case)

    def _stack_of(self, case: Case) -> tuple[Stack, Probe]:
        of_attention = case.wants == ("attention",)
        key = (case.weight_format, case.activations, case.kv_dtype, of_attention)
        if self._stack is None or self._stack[0] != key:
            self._stack = None  # its memory goes before the next one's comes
            num_layers = ATTENTION_LAYERS if of_attention else num_layers_of(case.weight_format, WEIGHT_BYTES)
            needed = [c.num_requests * -(-c.context // 64) for c in cases() if c.wants == case.wants]
            stack = make_stack(
                self._pool,
                self._isa,
                weight_format=case.weight_format,
                head_format="int8" if case.weight_format.startswith("int4") else case.weight_format,
                kv_dtype=case.kv_dtype,
                num_layers=num_layers,
                num_blocks=max(needed),
                activations=case.activations,
            )
            self._stack = key, stack, Probe(self._pool, self._isa, stack.weights)
        return self._stack[1:]

    def _time(self, case: Case) -> Timed:
        stack, probe = self._stack_of(case)
        stack.final_norm[:] = LOGIT_SCALES[case.logits]
        rows_each = case.rows // case.num_requests
        step = stack.step(
            num_requests=case.num_requests,
            rows_each=rows_each,
            context=case.context,
            sampled=[
                _sampled(case.sampler, row, stack.program.spec.vocab_size) for row in range(case.num_sampled)
            ],
        )
        shape = Shape(case.rows, case.num_sampled, case.num_requests, case.context - (rows_each - 1) // 2)
        kernels = kernels_of(stack.program, shape, self._isa)
        units = sorted({kernel.unit for kernel in kernels} - {""})
        executor = stack.executor
        executor.forward(step)
        executor.set_profiling(self._repeats)
        steal = Steal()
        limits = [_limits(probe, self._isa, self._pool.workers, units)]
        for _ in range(self._repeats):
            executor.forward(step)
            limits.append(_limits(probe, self._isa, self._pool.workers, units))
        _, ns = executor.profile()
        executor.set_profiling(0)
        around = [_mean(one, other) for one, other in pairwise(limits)]
        return Timed(kernels, ns, around, steal.share())


def _sampled(name: str, row: int, vocab_size: int) -> RowRequest:
    history = [(379 * token + row) % vocab_size for token in range(256)]
    num_logprobs = NUM_LOGPROBS if name.startswith("all") else -1
    return RowRequest(SAMPLERS[name], row, 256, history[:128], history[128:], num_logprobs=num_logprobs)


def _limits(probe: Probe, isa: str, threads: int, units: Sequence[str]) -> Measured:
    peaks = {unit: probe.operations_per_s(unit) for unit in units}
    return Measured(
        isa,
        threads,
        probe.read_bytes_per_s(),
        peaks.get("float32", 0),
        peaks.get("int8", 0),
        peaks.get("bfloat16", 0),
        peaks.get("tile_int8", 0),
    )


def _mean(one: Measured, other: Measured) -> Measured:
    return Measured(
        one.isa,
        one.threads,
        (one.read_bytes_per_s + other.read_bytes_per_s) / 2,
        (one.float32_flops_per_s + other.float32_flops_per_s) / 2,
        (one.int8_ops_per_s + other.int8_ops_per_s) / 2,
        (one.bfloat16_flops_per_s + other.bfloat16_flops_per_s) / 2,
        (one.tile_int8_ops_per_s + other.tile_int8_ops_per_s) / 2,
    )


class Steal:
    """The share of processor time that the host gave to others since this was made."""

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        self._stat = stat
        self._begin = self._read()

    def share(self) -> float:
        """0 to 1; 0 where the system does not say."""
        stolen, total = (now - then for now, then in zip(self._read(), self._begin, strict=True))
        return stolen / total if total else 0.0

    def _read(self) -> tuple[int, int]:
        try:
            fields = [int(text) for text in self._stat.read_text().split("\n", 1)[0].split()[1:9]]
        except OSError:
            return 0, 0
        return (fields[7], sum(fields)) if len(fields) > 7 else (0, 0)


def rows_of(case: Case, timed: Timed) -> list[Row]:
    """One row per wanted kernel, one for all products of the layers; shares are medians of steps."""
    wanted = [k for k in timed.kernels if not case.wants or k.name.startswith(case.wants)]
    layer_linears = [k for k in wanted if k.weight_format and "lm_head" not in k.name]
    if len(layer_linears) > 1:
        first = layer_linears[0]
        calls = [place for kernel in layer_linears for place in kernel.calls]
        moved, flops = (sum(getattr(k, what) for k in layer_linears) for what in ("bytes", "flops"))
        wanted.append(Kernel("layer linears", first.unit, calls, first.weight_format, moved, flops))
    return [_row(case, kernel, timed) for kernel in wanted]


def _row(case: Case, kernel: Kernel, timed: Timed) -> Row:
    seconds = kernel.seconds(timed.ns[:, :, 1])
    pairs = list(zip(seconds.tolist(), timed.around, strict=True))
    middle = statistics.median(seconds.tolist())
    row: Row = {
        "case": case.name, "kernel": kernel.name, "format": kernel.weight_format or case.kv_dtype,
        "rows": case.rows, "context": case.context, "calls": len(kernel.calls), "us": 1e6 * middle,
        "us_per_call": 1e6 * middle / len(kernel.calls), "steps": len(seconds), "steal": timed.steal,
    }  # fmt: skip
    if kernel.name == "sample":
        row |= {"us_per_row": 1e6 * middle / max(1, case.num_sampled)}
    if kernel.bytes:
        row |= {
            "gbps": kernel.bytes / middle / 1e9,
            "of_read": statistics.median(kernel.bytes / s / m.read_bytes_per_s for s, m in pairs),
            "read_gbps": statistics.median(m.read_bytes_per_s for m in timed.around) / 1e9,
        }
    if kernel.flops and kernel.unit:
        row |= {
            "gops": kernel.flops / middle / 1e9,
            "of_peak": statistics.median(kernel.flops / s / peak(kernel.unit, m) for s, m in pairs),
            "unit": kernel.unit,
            "peak_gops": statistics.median(peak(kernel.unit, m) for m in timed.around) / 1e9,
        }
    return row
