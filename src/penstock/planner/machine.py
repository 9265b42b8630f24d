"""What this machine offers: cores this process may use, memory that is really free. Read, never measured, here.

Measured figures (bandwidth, peaks) come from backends/cpu/probe.py through `doctor` and `bench`.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Machine:
    """Limits as this process meets them: affinity and cgroup included."""

    cores: int
    memory_bytes: int  # in all
    available_bytes: int  # now


def this_machine() -> Machine:
    memory = psutil.virtual_memory()
    limit, used = _cgroup_memory()
    available = memory.available if limit is None else min(memory.available, max(0, limit - used))
    total = memory.total if limit is None else min(memory.total, limit)
    return Machine(_cores(), total, available)


def _cores() -> int:
    """Physical cores within the affinity mask, no more than the cgroup's CPU quota."""
    allowed = (
        sorted(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else list(range(os.cpu_count() or 1))
    )
    siblings = {_core_of(cpu) for cpu in allowed}
    quota = _cgroup_cpus()
    return max(1, min(len(siblings), quota if quota is not None else len(siblings)))


def _core_of(cpu: int) -> tuple[str, str] | int:
    """(package, core) of a logical CPU, or the CPU itself where the system does not say."""
    folder = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
    try:
        return (folder / "physical_package_id").read_text(), (folder / "core_id").read_text()
    except OSError:
        return cpu


def _read_number(path: Path) -> int | None:
    try:
        text = path.read_text().split()[0]
    except (OSError, IndexError):
        return None
    return int(text) if text.isdigit() else None


def _cgroup_memory() -> tuple[int | None, int]:
    """(limit, used without reclaimable page cache) of the tightest cgroup above this process, v2 then v1."""
    for folder in _cgroup_folders():
        limit = _read_number(folder / "memory.max")
        if limit is not None:
            used = _read_number(folder / "memory.current") or 0
            return limit, max(0, used - _inactive_file(folder))
    limit = _read_number(CGROUP / "memory" / "memory.limit_in_bytes")
    if limit is not None and limit < 1 << 60:
        used = _read_number(CGROUP / "memory" / "memory.usage_in_bytes") or 0
        return limit, max(0, used - _inactive_file(CGROUP / "memory"))
    return None, 0


def _inactive_file(folder: Path) -> int:
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))


def _cgroup_cpus() -> int | None:
    for folder in _cgroup_folders():
        try:
            quota, period = (folder / "cpu.max").read_text().split()
        except (OSError, ValueError):
            continue
        if quota != "max":
            return max(1, int(quota) // int(period))
    return None


def _cgroup_folders() -> list[Path]:
    """This process's cgroup and its parents, innermost first."""
    try:
        line = next(x for x in Path("/proc/self/cgroup").read_text().splitlines() if x.startswith("0::"))
    except (OSError, StopIteration):
        return []
    folder = CGROUP / line[3:].lstrip("/")
    return [folder, *(parent for parent in folder.parents if parent == CGROUP or CGROUP in parent.parents)]
