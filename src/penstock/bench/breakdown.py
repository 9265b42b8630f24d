"""Where the time of a step goes: the profile ring of the native runtime, kernel by kernel.

Used by `bench kernels` and by `--profile`. Calls of all layers that do the same count as one kernel, named
by its op and, for a matrix product, by its weight: "linear mlp.gate_up".
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.backends.cpu.probe import Measured
from penstock.model.program import Call, Program, WeightUse
from penstock.ops.attention import attention
from penstock.weights.format import FORMATS

KV_ELEMENT_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class Shape:
    """Of one step; `context`: tokens that a row attends to, on average."""

    num_rows: int
    num_logit_rows: int
    num_requests: int
    context: int

    @property
    def sizes(self) -> Mapping[str, int]:
        return {"T": self.num_rows, "R": self.num_logit_rows, "B": self.num_requests, "S": self.context}


@dataclass(slots=True)
class Kernel:
    """All calls of a step that do the same.

    `bytes` come from memory: weights, keys and values; activations of a step stay in caches. `unit` is what
    makes its products: float32, bfloat16, int8, tile_int8, or "" where there are none.
    """

    name: str
    unit: str
    calls: list[int]  # places in the program
    weight_format: str = ""
    bytes: float = 0
    flops: float = 0

    def seconds(self, ns: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of every step kept: ns[S,O]."""
        total: NDArray[np.int64] = ns[:, self.calls].sum(axis=1)
        return total / 1e9

    def floor_s(self, measured: Measured) -> float:
        """The larger of what its bytes and what its products take at the least."""
        return max(self.bytes / measured.read_bytes_per_s, self.flops / peak(self.unit, measured))


def peak(unit: str, measured: Measured) -> float:
    """Operations per second."""
    return {
        "": float("inf"),
        "float32": measured.float32_flops_per_s,
        "int8": measured.int8_ops_per_s,
        "bfloat16": measured.bfloat16_flops_per_s,
        "tile_int8": measured.tile_int8_ops_per_s,
    }[unit]


def kernels_of(program: Program, shape: Shape, isa: str) -> list[Kernel]:
    """The kernels of one step of `shape`, in order of first appearance, the sampler last."""
    units = Units(program, isa)
    found: dict[str, Kernel] = {}
    for place, (call, cost) in enumerate(program.costs(shape.sizes)):
        matrix = program.matrix_of(call)
        name, unit = _name(call, matrix), units.of(call, matrix)
        kernel = found.setdefault(name, Kernel(name, unit, [], (matrix.format or "") if matrix else ""))
        kernel.calls.append(place)
        kernel.bytes += _bytes(program, call, matrix, shape)
        kernel.flops += cost.flops if unit else 0
    sampler = Kernel("sample", "", [len(program.calls)])
    return [*found.values(), sampler]


def _name(call: Call, matrix: WeightUse | None) -> str:
    if matrix is None:
        return call.op.name
    return f"{call.op.name} {re.sub('^layers[.][0-9]+[.]', '', matrix.name)}"


class Units:
    """What the products of a program's calls are made of on one instruction set."""

    def __init__(self, program: Program, isa: str) -> None:
        has_tiles = isa.startswith("amx")
        self._int8 = "tile_int8" if has_tiles else "int8"
        self._bfloat16 = "bfloat16" if has_tiles or isa == "avx512bf16" else "float32"
        self._attention = "bfloat16" if has_tiles else "float32"
        self._written_as = {call.output: call.attrs.get("to") for call in program.calls}

    def of(self, call: Call, matrix: WeightUse | None) -> str:
        """Everything pointwise is counted by time alone: ""."""
        if matrix is not None:
            operand = self._written_as.get(call.inputs[0] or "")
            return {"int8": self._int8, "bfloat16": self._bfloat16}.get(operand or "", "float32")
        if call.op is attention:
            return self._attention if call.attrs["to"] != "float32" else "float32"
        return ""


def _bytes(program: Program, call: Call, matrix: WeightUse | None, shape: Shape) -> float:
    if call.op is attention:
        (kv,) = (layer for layer in program.kv_layers if f"kv.{layer.layer}" in call.inputs)
        window = program.kv_groups[kv.group].window
        num_tokens = shape.context if window is None else min(shape.context, window)
        token_bytes = kv.values_per_token * KV_ELEMENT_BYTES[kv.dtype]
        return float(shape.num_requests * num_tokens * token_bytes)
    if matrix is None or (call.output == "logits" and not shape.num_logit_rows):
        return 0.0
    assert matrix.format is not None
    n, k = matrix.shape
    return FORMATS[matrix.format].bytes_per_weight(k) * n * k


def report(kernels: Sequence[Kernel], ns: NDArray[np.int64], measured: Measured) -> list[str]:
    """A table of lines, heaviest kernel first; medians over the steps of ns[S,O,2]."""
    whole, own = ns[:, :, 1], ns[:, :, 0]
    total = float(np.median(whole.sum(axis=1))) / 1e9
    lines = [
        f"{'kernel':28} {'calls':>5} {'us':>10} {'share':>6} {'GB/s':>7} {'GOP/s':>8} {'of floor':>8} "
        f"{'waits':>6}"
    ]
    timed = sorted(kernels, key=lambda kernel: -float(np.median(kernel.seconds(whole))))
    for kernel in timed:
        seconds = max(1e-12, float(np.median(kernel.seconds(whole))))
        waits = 1 - float(np.median(kernel.seconds(own))) / seconds
        floor = kernel.floor_s(measured) / seconds
        lines.append(
            f"{kernel.name:28} {len(kernel.calls):5} {1e6 * seconds:10.1f} {seconds / total:6.1%} "
            f"{_or_dash(kernel.bytes / seconds / 1e9, 7, 2)} "
            f"{_or_dash(kernel.flops / seconds / 1e9, 8, 1)} "
            f"{f'{floor:8.0%}' if floor else '       -'} {waits:6.1%}"
        )
    floor_s = sum(kernel.floor_s(measured) for kernel in kernels)
    lines.append(
        f"{'whole step':28} {'':5} {1e6 * total:10.1f} {1:6.1%} {'':7} {'':8} {floor_s / total:8.0%}"
    )
    return lines


def _or_dash(value: float, width: int, digits: int) -> str:
    return f"{value:{width}.{digits}f}" if value else f"{'-':>{width}}"
