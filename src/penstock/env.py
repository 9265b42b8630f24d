"""Every environment variable penstock reads, typed, in one place; a test counts them (at most ten).

What can be a field of EngineConfig is one; here is only what must be known before Python starts, what
is secret, and what belongs to the ecosystem.
"""

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def isa() -> str | None:
    """PENSTOCK_ISA=scalar|avx2|avx512|amx|... forces one path of the native kernels (tests, bug hunts)."""
    return os.environ.get("PENSTOCK_ISA") or None


def break_invariance() -> str | None:
    """PENSTOCK_BREAK=<name> breaks row-independence on purpose: proof that the tests notice. Tests only."""
    return os.environ.get("PENSTOCK_BREAK") or None


def cache_dir() -> Path:
    """$XDG_CACHE_HOME/penstock, where packed weights and measured machine figures are kept."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "penstock"


def hub_cache_dir() -> Path:
    """Where huggingface_hub keeps its snapshots: HF_HUB_CACHE, else HF_HOME/hub."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache)
    home = os.environ.get("HF_HOME")
    return (Path(home) if home else Path.home() / ".cache" / "huggingface") / "hub"


def hub_is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}


def for_child(**changes: str) -> dict[str, str]:
    """The environment of a process that is started, with `changes`."""
    return dict(os.environ) | changes


def api_key() -> str | None:
    """PENSTOCK_API_KEY: a key that clients of the server must bring. Set but empty is a mistake."""
    return os.environ.get("PENSTOCK_API_KEY")


def penstock_version() -> str:
    """The version of this package, also where it runs from a source tree that was never installed."""
    try:
        return version("penstock")
    except PackageNotFoundError:
        return "(source tree)"
