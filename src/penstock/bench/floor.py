"""The least time a step can take here: bytes over measured bandwidth or operations over measured peak.

Used by the bench verbs. Knows no clock: what was measured is handed in.
"""

from dataclasses import dataclass
from typing import Final

from penstock.backends.cpu.probe import Measured
from penstock.kv.codec import CODECS
from penstock.model.program import Call, Program
from penstock.weights.format import FORMATS

STATE_VALUE_BYTES: Final = 4  # float32, whatever the weights are


@dataclass(frozen=True, slots=True)
class Floor:
    """`bound` says which of the two limits is the larger: "memory" or "compute"."""

    seconds: float
    bytes: float
    flops: float
    bound: str


def floor_of(
    program: Program,
    measured: Measured,
    *,
    num_rows: int,
    num_logit_rows: int,
    num_requests: int,
    context: int,
) -> Floor:
    """Of one step of `num_rows` rows that attend to `context` tokens each on average.

    Weights, keys and values count as traffic, once each, and states twice, since a step reads and writes the
    one of every request, however long its text is. Activations of a step stay in caches. Products
    with int8 or int4 weights count against the measured int8 peak, with bf16 weights against that of bf16
    where the machine has one, all else against the fp32 peak. The int8 peak is of the vector units, so that a
    machine with AMX may do better than its floor.
    """
    sizes = {"T": num_rows, "R": num_logit_rows, "B": num_requests, "S": context}
    flops = compute_s = 0.0
    for call, cost in program.costs(sizes):
        flops += cost.flops
        compute_s += cost.flops / _peak(program, call, measured)
    moved = _weight_bytes(program, num_logit_rows) + _kv_bytes(program, num_requests, context)
    memory_s = moved / measured.read_bytes_per_s
    bound = "memory" if memory_s >= compute_s else "compute"
    return Floor(max(memory_s, compute_s), moved, flops, bound)


def _peak(program: Program, call: Call, measured: Measured) -> float:
    matrix = program.matrix_of(call)
    weight_format = (matrix.format or "") if matrix is not None else ""
    if weight_format.startswith("int"):
        return measured.int8_ops_per_s
    is_paired = weight_format == "bfloat16" and measured.bfloat16_flops_per_s > 0
    return measured.bfloat16_flops_per_s if is_paired else measured.float32_flops_per_s


def _weight_bytes(program: Program, num_logit_rows: int) -> float:
    """Of the matrices that a step reads. An embedding gives one row per token: next to nothing."""
    return sum(
        FORMATS[use.format].bytes_per_weight(use.shape[1]) * use.shape[0] * use.shape[1]
        for use in program.weights.values()
        if use.format is not None and (num_logit_rows or use.name != "lm_head")
    )


def _kv_bytes(program: Program, num_requests: int, context: int) -> float:
    moved = sum(2 * STATE_VALUE_BYTES * state.values_per_block for state in program.state_layers)
    for kv in program.kv_layers:
        window = program.kv_groups[kv.group].window
        num_tokens = context if window is None else min(context, window)
        token_bytes = CODECS[kv.dtype].bytes_per_token(kv.head_dim, has_values=not kv.latent_dim)
        moved += kv.num_kv_heads * token_bytes * num_tokens
    return float(moved * num_requests)
