"""A planned program and its checkpoint -> an executor that holds the packed weights.

Called by build.py. The only place that makes backends.
"""

import numpy as np
from numpy.typing import NDArray

from penstock import env
from penstock.config import EngineConfig, Plan
from penstock.engine.sketch import mapped_weights, names_of, wanted_of
from penstock.model.program import Program
from penstock.scheduler.scheduler import MAX_SCORED_ROWS
from penstock.step import Executor
from penstock.weights.coding import CodedBlocks, CodedRows
from penstock.weights.format import FORMATS
from penstock.weights.loader import CodePacker, LoadedWeights, Packer, load, pack_with_numpy
from penstock.weights.reader import Checkpoint


def make_executor(
    program: Program, plan: Plan, checkpoint: Checkpoint, config: EngineConfig
) -> tuple[Executor, tuple[str, ...]]:
    names = names_of(program.spec, checkpoint)

    def load_weights(pack: Packer, pack_codes: CodePacker | None = None) -> LoadedWeights:
        return load(
            checkpoint,
            wanted_of(program, names),
            is_inert=lambda name: names.is_inert(name, program.spec),
            pack=pack,
            pack_codes=pack_codes,
            cache=env.cache_dir() if config.pack_cache else None,
            verify=config.verify_weights,
            mapped=mapped_weights(program, plan),
        )

    if plan.backend == "cpu":
        from penstock import _native
        from penstock.backends.cpu.executor import CpuExecutor, break_on_purpose
        from penstock.backends.cpu.lower import Limits

        break_on_purpose(env.break_invariance())
        pool = _native.Pool(plan.threads)

        def pack(rows: NDArray[np.generic], dtype: str, format: str, out: NDArray[np.uint8]) -> bool:
            finite: bool = pool.pack(rows.view(np.uint16) if rows.itemsize == 2 else rows, dtype, format, out)
            return finite

        def pack_codes(codes: CodedRows | CodedBlocks, format: str, out: NDArray[np.uint8]) -> bool:
            finite: bool
            if isinstance(codes, CodedBlocks):
                finite = pool.pack_blocks(codes.kind, np.ascontiguousarray(codes.rows), codes.k, format, out)
            else:
                parts = [part.view(np.uint8) for part in codes.stored_parts()]
                finite = pool.pack_codes(np.ascontiguousarray(codes.codes), parts, format, out)
            return finite

        weights = load_weights(pack, pack_codes)
        limits = Limits(
            plan.max_step_tokens,
            plan.max_requests + MAX_SCORED_ROWS,
            plan.num_kv_blocks,
            plan.resident_experts,
        )
        return CpuExecutor(program, weights, limits, isa=plan.isa, pool=pool), tuple(weights.notes)

    from penstock.backends.reference.executor import ReferenceExecutor

    weights = load_weights(pack_with_numpy)
    arrays = _unpacked(program, weights)
    executor = ReferenceExecutor(
        program, arrays, num_kv_blocks=plan.num_kv_blocks, block_size=plan.block_size
    )
    return executor, tuple(weights.notes)


def _unpacked(program: Program, weights: LoadedWeights) -> dict[str, NDArray[np.float32]]:
    """fp32 arrays of what the packed bytes stand for."""
    arrays: dict[str, NDArray[np.float32]] = dict(weights.vectors)
    for name, table in weights.embeddings.items():
        arrays[name] = table.astype(np.float32)
    for name, packed in weights.packed.items():
        use = program.weights[name]
        own = use.format or weights.coded_embeddings[name]
        arrays[name] = FORMATS[own].unpack(packed, *use.shape)
    return arrays
