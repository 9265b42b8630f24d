"""The least time a step can take here: bytes over measured bandwidth, operations over measured peak, the larger."""

from dataclasses import dataclass

from penstock.backends.cpu.probe import Measured
from penstock.model.program import Program
from penstock.weights.format import FORMATS


@dataclass(frozen=True, slots=True)
class Floor:
    """`bound` says which of the two limits is the larger."""

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

    Only weights, keys and values count as traffic from memory: activations of a step stay in caches.
    """
    sizes = {"T": num_rows, "R": num_logit_rows, "B": num_requests, "S": context}
    widths = {
        use.format: FORMATS[use.format].bytes_per_weight(use.shape[1])
        for use in program.weights.values()
        if use.format is not None
    }
    flops = program.cost(sizes).flops
    weight_bytes = sum(
        widths[use.format] * use.shape[0] * use.shape[1]
        for use in program.weights.values()
        if use.format is not None and (num_logit_rows or use.name != "lm_head")
    )
    kv_bytes = sum(
        2
        * layer.num_kv_heads
        * layer.head_dim
        * (4 if layer.dtype == "float32" else 2)
        * context
        * num_requests
        for layer in program.kv_layers
    )
    is_int8 = any(fmt is not None and fmt.startswith("int") for fmt in widths)
    peak = measured.int8_ops_per_s if is_int8 else measured.float32_flops_per_s
    memory_s = (weight_bytes + kv_bytes) / measured.read_bytes_per_s
    compute_s = flops / peak
    bound = "memory" if memory_s >= compute_s else "compute"
    return Floor(max(memory_s, compute_s), weight_bytes + kv_bytes, flops, bound)
