"""Measures this machine with the native probes: the floors that `doctor` and `bench` divide by.

The only Python file outside the executor that imports the native module for machine facts; `cli` and
`bench` hand what it finds to whoever plans.
"""

from dataclasses import dataclass

from penstock.errors import BackendError


@dataclass(frozen=True, slots=True)
class Measured:
    """Of `threads` workers together, in this minute: a shared machine changes its mind."""

    isa: str
    threads: int
    read_bytes_per_s: float
    float32_flops_per_s: float
    int8_ops_per_s: float


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


def measure(isa: str, threads: int, *, read_bytes: int = 1 << 30, repeats: int = 3) -> Measured:
    """Reads of `read_bytes` (beyond every cache; the better of two patterns), fp32 FMAs, int8 products."""
    try:
        from penstock import _native
    except ImportError:
        raise BackendError(
            "no native build: nothing to measure. Install a C++20 compiler and reinstall."
        ) from None
    pool = _native.Pool(threads)
    base = isa if isa not in ("amx", "amx_emulated") else "avx512"
    return Measured(
        isa=isa,
        threads=threads,
        read_bytes_per_s=pool.probe_read(base, read_bytes, repeats),
        float32_flops_per_s=pool.probe_compute(base, False, repeats),
        int8_ops_per_s=pool.probe_compute(base, True, repeats),
    )
