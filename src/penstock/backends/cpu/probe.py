"""Measures this machine with the native probes: the floors that `doctor` and `bench` divide by.

The only Python file outside the executor that imports the native module for machine facts; `cli` and
`bench` hand what it finds to whoever plans.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from penstock.errors import BackendError
from penstock.weights.arena import reserve

if TYPE_CHECKING:
    from penstock import _native


@dataclass(frozen=True, slots=True)
class Measured:
    """Of `threads` workers together, in this minute: a shared machine changes its mind."""

    isa: str
    threads: int
    read_bytes_per_s: float
    float32_flops_per_s: float
    int8_ops_per_s: float
    bfloat16_flops_per_s: float = 0  # AMX or VDPBF16PS; 0 where bf16 products are fp32 ones
    tile_int8_ops_per_s: float = 0


def isas() -> list[str]:
    """Instruction sets of build and machine, best first, emulated ones last; [] without a native build."""
    try:
        from penstock import _native
    except ImportError:
        return []
    names: list[str] = _native.isas()
    return names


def dropped_isa() -> str:
    """What the start-up self-test left out: AMX that does not give its fallback's bits. "": nothing."""
    try:
        from penstock import _native
    except ImportError:
        return ""
    return _native.dropped_isa()


def cpu_name() -> str:
    try:
        from penstock import _native
    except ImportError:
        return "unknown"
    return str(_native.cpu_name())


class Probe:
    """One short run at a time of the workers of `pool`, to take turns with what is held against it.

    Reads pass over `data`, which should be beyond every cache, in the better of two patterns (address order,
    or four streams with prefetch): processors differ in which they serve better.
    """

    def __init__(self, pool: "_native.Pool", isa: str, data: NDArray[np.uint8]) -> None:
        self._pool, self._isa, self._data = pool, isa, data
        rates = {
            in_order: max(pool.read_rate(isa, data, in_order) for _ in range(2)) for in_order in (True, False)
        }
        self.reads_in_order = rates[True] > rates[False]

    def read_bytes_per_s(self) -> float:
        """One pass over the data."""
        return self._pool.read_rate(self._isa, self._data, self.reads_in_order)

    def operations_per_s(self, unit: str) -> float:
        """`unit`: float32, int8, bfloat16 or tile_int8; 0 where the machine has no such unit."""
        return self._pool.compute_rate(self._isa, unit)

    def measure(self, repeats: int) -> Measured:
        """The best of `repeats` runs of each."""
        read = max(self.read_bytes_per_s() for _ in range(repeats))
        peaks = [
            max(self.operations_per_s(unit) for _ in range(repeats))
            for unit in ("float32", "int8", "bfloat16", "tile_int8")
        ]
        return Measured(self._isa, self._pool.workers, read, *peaks)


def measure(isa: str, threads: int, *, read_bytes: int = 1 << 30, repeats: int = 3) -> Measured:
    """Reads of `read_bytes` (beyond every cache), fp32 FMAs, int8 products; on AMX, those of the tiles."""
    try:
        from penstock import _native
    except ImportError:
        raise BackendError(
            "no native build: nothing to measure. Install a C++20 compiler and reinstall."
        ) from None
    data = reserve(read_bytes)
    data[::64] = 1  # every page is there, and no two of them are the same zero page
    return Probe(_native.Pool(threads), isa, data).measure(repeats)
