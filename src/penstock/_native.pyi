"""Types of the native extension (native/bind*.cpp), as the product uses it; test entries are untyped."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

def isas() -> list[str]: ...
def best_isa() -> str: ...
def dropped_isa() -> str: ...
def cpu_name() -> str: ...
def panel_bytes(format: str, k: int) -> int: ...
def operand_bytes(kind: str, rows: int, k: int) -> int: ...
def expert_rows(rows: int, top_k: int, num_experts: int) -> int: ...
def all_finite(values: NDArray[Any], dtype: str) -> bool: ...
def set_break(kind: int) -> None: ...
def __getattr__(name: str) -> Any: ...  # Any: the entries that only tests call

class Pool:
    def __init__(self, workers: int) -> None: ...
    @property
    def workers(self) -> int: ...
    def pack(self, w: NDArray[Any], dtype: str, format: str, out: NDArray[np.uint8]) -> bool: ...
    def pack_blocks(
        self, kind: str, rows: NDArray[np.uint8], k: int, format: str, out: NDArray[np.uint8]
    ) -> bool: ...  # fmt: skip
    def pack_codes(
        self, codes: NDArray[np.int8], parts: Sequence[NDArray[np.uint8]], format: str, out: NDArray[np.uint8]
    ) -> bool: ...  # fmt: skip
    def read_rate(self, isa: str, data: NDArray[np.uint8], in_order: bool) -> float: ...
    def compute_rate(self, isa: str, unit: str) -> float: ...

class Program:
    def __init__(
        self, isa: str, pool: Pool, arena_bytes: int, vocab: int, max_context: int, max_rows: int,
        max_logit_rows: int, num_blocks: Sequence[int],
    ) -> None: ...  # fmt: skip
    def floats(self, offset: int, width: int, rows: int) -> int: ...
    def operand(self, offset: int, kind: str, k: int, rows: int) -> int: ...
    def embed(
        self, table: NDArray[Any], dtype: str, scale: float, positions: NDArray[Any] | None,
        position_dtype: str, position_offset: int, out: int,
    ) -> None: ...  # fmt: skip
    def embed_codes(
        self, packed: NDArray[np.uint8], format: str, n: int, k: int, scale: float,
        positions: NDArray[Any] | None, position_dtype: str, position_offset: int, out: int,
    ) -> None: ...  # fmt: skip
    def embed_positions(self, table: NDArray[Any], dtype: str, offset: int, out: int) -> None: ...
    def norm(
        self, x: int, weight: NDArray[np.float32] | None, bias: NDArray[np.float32] | None, kind: str,
        eps: float, offset: float, addend: int, rows: str, out: int,
    ) -> None: ...  # fmt: skip
    def to_operand(self, x: int, logit_rows: bool, out: int) -> None: ...
    def linear(
        self, packed: NDArray[np.uint8], format: str, n: int, k: int, x: int, out: int,
        bias: NDArray[np.float32] | None, scale: float, addend: int, logit_rows: bool,
    ) -> None: ...  # fmt: skip
    def rope_write(
        self, x: int, num_heads: int, rotary: int, is_interleaved: bool, q_norm: NDArray[np.float32] | None,
        k_norm: NDArray[np.float32] | None, norm_kind: str, eps: float, offset: float, norms_row: bool,
        cos: NDArray[np.float32] | None, sin: NDArray[np.float32] | None, group: int, pool: NDArray[np.uint8],
        first_byte: int, kv_heads: int, head_dim: int, dtype: str, out: int,
    ) -> None: ...  # fmt: skip
    def attention(
        self, x: int, num_heads: int, scale: float, softcap: float, window: int, is_causal: bool,
        sinks: NDArray[np.float32] | None, slopes: NDArray[np.float32] | None, group: int,
        pool: NDArray[np.uint8], first_byte: int, kv_heads: int, head_dim: int, latent_dim: int,
        dtype: str, out: int,
    ) -> None: ...  # fmt: skip
    def heads_operand(self, x: int, num_heads: int, out: int) -> None: ...
    def heads_linear(
        self, packed: NDArray[np.uint8], format: str, n: int, k: int, num_heads: int, x: int, out: int
    ) -> None: ...
    def latent_write(
        self, latent: int, q_latent: int, q_rope: int, num_heads: int, is_interleaved: bool,
        weight: NDArray[np.float32], norm_kind: str, eps: float, offset: float, cos: NDArray[np.float32],
        sin: NDArray[np.float32], group: int, pool: NDArray[np.uint8], first_byte: int, head_dim: int,
        latent_dim: int, dtype: str, out: int,
    ) -> None: ...  # fmt: skip
    def gated(self, x: int, act: str, is_gated: bool, out: int) -> None: ...
    def softcap(self, x: int, cap: float, out: int) -> None: ...
    def join(self, left: int, right: int, out: int) -> None: ...
    def add(self, x: int, y: int, gate: int, out: int) -> None: ...
    def route(
        self, logits: int, correction: NDArray[np.float32] | None, top_k: int, score: str, renormalize: bool,
        scale: float, num_groups: int, groups_kept: int, out: int,
    ) -> None: ...  # fmt: skip
    def experts(
        self, x: int, routing: int, gate_up: NDArray[np.uint8], format: str, n_in: int, k_in: int,
        gate_up_bias: NDArray[np.float32] | None, down: NDArray[np.uint8], down_format: str, n_out: int,
        k_out: int, down_bias: NDArray[np.float32] | None, num_experts: int, act: str, values: list[int],
        num_resident: int, out: int,
    ) -> None: ...  # fmt: skip
    def foresee(self, routing: int, num_experts: int) -> None: ...
    def residency(self) -> NDArray[np.int64]: ...
    def causal_conv(
        self, x: int, weight: NDArray[np.float32], bias: NDArray[np.float32] | None, first: int, group: int,
        pool: NDArray[np.uint8], first_byte: int, sizes: Sequence[int], out: int,
    ) -> None: ...  # fmt: skip
    def selective_scan(
        self, xbc: int, x: int, dt_bias: NDArray[np.float32] | None, a_log: NDArray[np.float32] | None,
        skip: NDArray[np.float32] | None, num_groups: int, limit: tuple[float, float] | None, group: int,
        pool: NDArray[np.uint8], first_byte: int, sizes: Sequence[int], out: int,
    ) -> None: ...  # fmt: skip
    def gated_norm(
        self, y: int, z: int, weight: NDArray[np.float32] | None, span: int, eps: float, out: int
    ) -> None: ...
    def sample(self, logits: int) -> None: ...
    def run(self, *arrays: Any) -> None: ...  # Any: StepInput's arrays in the order of bind_program.cpp
    def read(self, value: int, rows: int) -> NDArray[np.float32]: ...
    @property
    def isa(self) -> str: ...
    @property
    def num_ops(self) -> int: ...
    def set_profiling(self, steps: int) -> None: ...
    def profile(self) -> NDArray[np.int64]: ...
