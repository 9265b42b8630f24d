"""What this machine offers: cores this process may use, memory that is really free. Read, never measured.

Called by engine.build and `doctor`. Measured figures (bandwidth, peaks) come from backends/cpu/probe.py.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

NO_LIMIT_BYTES = 1 << 60  # cgroup v1 writes a number near 2^63 where there is no limit


@dataclass(frozen=True, slots=True)
class Machine:
    """Limits as this process meets them: affinity and cgroup included."""

    cores: int
    memory_bytes: int  # in all
    available_bytes: int  # now


def this_machine(root: Path = Path("/")) -> Machine:
    """The machine whose /proc and /sys lie under `root`."""
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    for limit, used in _cgroup_memory(root):
        total = min(total, limit)
        available = min(available, max(0, limit - used))
    return Machine(_cores(root), total, available)


def _cores(root: Path) -> int:
    """Physical cores within the affinity mask, no more than the tightest CPU quota of a cgroup."""
    has_affinity = hasattr(os, "sched_getaffinity")
    allowed = os.sched_getaffinity(0) if has_affinity else set(range(os.cpu_count() or 1))
    cores = len({_core_of(root, cpu) for cpu in allowed})
    return max(1, min([cores, *_cgroup_cpus(root)]))


def _core_of(root: Path, cpu: int) -> tuple[str, str] | int:
    """(package, core) of a logical CPU, or the CPU itself where the system does not say."""
    folder = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
    try:
        return (folder / "physical_package_id").read_text(), (folder / "core_id").read_text()
    except OSError:
        return cpu


def _cgroup_memory(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, used without reclaimable page cache) of every cgroup around this process that has a limit."""
    for folder in _cgroup_folders(root, ""):
        limit = _read_number(folder / "memory.max")
        if limit is not None:
            yield limit, _used(folder, "memory.current", "inactive_file")
    for folder in _cgroup_folders(root, "memory"):
        limit = _read_number(folder / "memory.limit_in_bytes")
        if limit is not None and limit < NO_LIMIT_BYTES:
            yield limit, _used(folder, "memory.usage_in_bytes", "total_inactive_file")


def _used(folder: Path, file: str, reclaimable: str) -> int:
    """Bytes in use that are not cached files, which the system gives back when memory is short."""
    used = _read_number(folder / file) or 0
    try:
        words = [line.split() for line in (folder / "memory.stat").read_text().splitlines()]
    except OSError:
        words = []
    return max(0, used - sum(int(line[1]) for line in words if line[0] == reclaimable))


def _cgroup_cpus(root: Path) -> Iterator[int]:
    """Whole CPUs of every quota around this process."""
    for folder in _cgroup_folders(root, ""):
        try:
            quota, period = (folder / "cpu.max").read_text().split()
        except (OSError, ValueError):
            continue
        if quota != "max":
            yield int(quota) // int(period)
    for folder in _cgroup_folders(root, "cpu"):
        v1_quota, v1_period = (_read_number(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        if v1_quota is not None and v1_period:
            yield v1_quota // v1_period


def _cgroup_folders(root: Path, controller: str) -> list[Path]:
    """This process's cgroup and its parents, innermost first. `controller`: "" is version 2."""
    mount = root / "sys/fs/cgroup" / controller
    try:
        lines = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return []
    paths = [line[2] for line in lines if len(line) == 3 and controller in line[1].split(",")]
    if not paths:
        return []
    folder = mount / paths[0].lstrip("/")
    return [folder, *(parent for parent in folder.parents if parent == mount or mount in parent.parents)]


def _read_number(path: Path) -> int | None:
    """None for a file that is not there or says "max" or -1."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
