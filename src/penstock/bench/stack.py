"""A decoder of real shape and made-up weights, beyond every cache: what `bench kernels` runs.

The product's own path: program, fusion, packed formats, recorded native program. Weights of one layer are
drawn and packed once and copied, each layer in memory of its own: speed does not depend on their values,
but NaN or zeros would make it. Peak memory: the packed weights and the KV pool.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from penstock import _native
from penstock.backends.cpu.executor import CpuExecutor
from penstock.backends.cpu.lower import BLOCK_TOKENS, Limits
from penstock.model.build import build
from penstock.model.family import read_model
from penstock.model.passes.fuse import fuse
from penstock.model.program import Program, WeightUse
from penstock.sampling.rows import RowRequest, make_rows
from penstock.step import StepInput
from penstock.weights.arena import reserve
from penstock.weights.format import FORMATS, PANEL_COLUMNS
from penstock.weights.formats.codes import Codes
from penstock.weights.loader import LoadedWeights, panel_bytes

SHAPE = {  # of Llama-3.2-1B
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048,
    "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
    "vocab_size": 128256, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "max_position_embeddings": 16384,
    "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}  # fmt: skip
LAYER_WEIGHTS = 2048 * (2 * 2048 + 2 * 512 + 3 * 8192)
MAX_ROWS = 512
MAX_LOGIT_ROWS = 32
DRAWN_ROWS = 4096  # of a matrix; the rest repeats them
DRAWN_TOKENS = 64  # rows of the embedding that are there; steps hold no other tokens


def num_layers_of(weight_format: str, at_least_bytes: int) -> int:
    """How many layers weigh so much."""
    return -(-at_least_bytes // int(LAYER_WEIGHTS * FORMATS[weight_format].bytes_per_weight(2048)))


@dataclass(frozen=True, slots=True)
class Stack:
    """`weights` is the memory of all packed matrices, in one piece; `final_norm` scales the logits."""

    program: Program
    executor: CpuExecutor
    weights: NDArray[np.uint8]
    final_norm: NDArray[np.float32]

    def step(
        self, *, num_requests: int, rows_each: int, context: int, sampled: Sequence[RowRequest] = ()
    ) -> StepInput:
        """`rows_each` last rows of each request, `context` tokens long with them; `sampled` draws the first
        rows' tokens."""
        num_rows = num_requests * rows_each
        blocks = -(-context // BLOCK_TOKENS)
        starts = np.arange(num_requests + 1, dtype=np.int32) * rows_each
        last = np.arange(context - rows_each, context, dtype=np.int32)
        vocab_size = self.program.spec.vocab_size
        return StepInput(
            tokens=np.random.default_rng(0).integers(DRAWN_TOKENS, size=num_rows, dtype=np.int32),
            positions=np.tile(last, num_requests),
            query_start=starts,
            context_len=np.full(num_requests, context, np.int32),
            block_tables=(np.arange(num_requests * blocks, dtype=np.int32).reshape(num_requests, blocks),),
            logit_rows=starts[1 : 1 + len(sampled)] - 1,
            sampling=make_rows(sampled, vocab_size),
        )


def make_stack(
    pool: _native.Pool,
    isa: str,
    *,
    weight_format: str,
    head_format: str,
    kv_dtype: str,
    num_layers: int,
    num_blocks: int,
    activations: str = "int8",
) -> Stack:
    """`num_blocks`: of the KV pool, filled with numbers."""
    spec = read_model(SHAPE | {"num_hidden_layers": num_layers})
    plain = build(
        spec,
        weight_format=weight_format,
        head_format=head_format,
        kv_dtype=kv_dtype,
        max_context=spec.max_context,
        activations=activations,
    )
    program = fuse(plain)
    weights = LoadedWeights()
    linears = [use for use in program.weights.values() if use.kind == "linear"]
    sizes = [_packed_bytes(use) for use in linears]
    memory = reserve(sum(sizes))
    made: dict[tuple[tuple[int, ...], str | None], NDArray[np.uint8]] = {}
    at = 0
    for use, size in zip(linears, sizes, strict=True):
        out = weights.packed[use.name] = memory[at : at + size]
        at += size
        if (use.shape, use.format) in made:
            out[:] = made[use.shape, use.format]
        else:
            made[use.shape, use.format] = out
            _pack(pool, use, out)
    for use in program.weights.values():
        if use.kind == "vector":
            weights.vectors[use.name] = np.ones(use.shape, np.float32)
        elif use.kind == "embedding":
            weights.embeddings[use.name] = _embedding(*use.shape)
    limits = Limits(MAX_ROWS, MAX_LOGIT_ROWS, (num_blocks,))
    executor = CpuExecutor(program, weights, limits, isa=isa, pool=pool)
    _fill(executor.kv_pools[0], kv_dtype)
    return Stack(program, executor, memory, weights.vectors["final_norm"])


def _packed_bytes(use: WeightUse) -> int:
    assert use.format is not None
    return -(-use.shape[0] // PANEL_COLUMNS) * panel_bytes(use.format, use.shape[1])


def _pack(pool: _native.Pool, use: WeightUse, out: NDArray[np.uint8]) -> None:
    assert use.format is not None
    n, k = use.shape
    dtype = use.format if use.format in ("float16", "bfloat16") else "float32"
    rows = min(n, DRAWN_ROWS)
    drawn = 0.02 * np.random.default_rng(n + k).standard_normal((rows, k), np.float32)
    source = drawn.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    per_panel = panel_bytes(use.format, k)
    for begin in range(0, n, rows):
        part = source[: min(rows, n - begin)]
        end = min(n, begin + rows)
        place = out[begin // PANEL_COLUMNS * per_panel : -(-end // PANEL_COLUMNS) * per_panel]
        if isinstance(FORMATS[use.format], Codes):  # made by others' quantizers: numpy alone packs them
            place[:] = FORMATS[use.format].pack(part)
        else:
            pool.pack(part.view(np.uint16) if part.itemsize == 2 else part, dtype, use.format, place)


def _embedding(n: int, k: int) -> NDArray[np.generic]:
    """[n,k] of which only the first rows are resident."""
    table: NDArray[np.generic] = reserve(2 * n * k).view(ml_dtypes.bfloat16).reshape(n, k)
    table[:DRAWN_TOKENS] = np.random.default_rng(1).standard_normal((DRAWN_TOKENS, k), np.float32)
    return table


def _fill(kv_pool: NDArray[np.uint8], kv_dtype: str) -> None:
    drawn = np.random.default_rng(2).standard_normal(1 << 16, np.float32)
    data = drawn.astype(ml_dtypes.bfloat16 if kv_dtype == "bfloat16" else kv_dtype).view(np.uint8)
    for begin in range(0, len(kv_pool), len(data)):
        part = kv_pool[begin : begin + len(data)]
        part[:] = data[: len(part)]
