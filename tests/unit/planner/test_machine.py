import os
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from penstock.planner.machine import Machine, this_machine

GB = 1 << 30


@pytest.fixture(autouse=True)
def known_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 GiB, 48 of them free, and eight CPUs."""
    memory = SimpleNamespace(total=64 * GB, available=48 * GB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def cores(num_packages: int, cores_each: int, threads_each: int) -> dict[str, str]:
    """Logical CPUs as Linux numbers them: all first threads, then all second ones."""
    files, num_cores = {}, num_packages * cores_each
    for cpu in range(num_cores * threads_each):
        folder = f"sys/devices/system/cpu/cpu{cpu}/topology"
        files[f"{folder}/physical_package_id"] = f"{cpu % num_cores // cores_each}\n"
        files[f"{folder}/core_id"] = f"{cpu % num_cores % cores_each}\n"
    return files


V2 = "sys/fs/cgroup"
OWN = {"proc/self/cgroup": "0::/outer/inner\n"}


def test_without_cgroups_and_topology_all_cpus_and_memory_are_ours(tmp_path: Path) -> None:
    assert this_machine(tmp_path) == Machine(8, 64 * GB, 48 * GB)


def test_two_threads_of_a_core_are_one_core(tmp_path: Path) -> None:
    assert this_machine(write(tmp_path, cores(2, 2, 2))).cores == 4
    assert this_machine(write(tmp_path, cores(2, 4, 1))).cores == 8


def test_cores_outside_the_affinity_mask_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, cores(1, 4, 2))
    for mask, expected in (({0, 4}, 1), ({0, 1, 4}, 2), ({3}, 1)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, mask=mask: mask)

        assert this_machine(tmp_path).cores == expected


def test_a_system_without_affinity_counts_all_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)

    assert this_machine(tmp_path).cores == 3


def test_the_limit_of_the_own_cgroup_holds_and_its_reclaimable_cache_is_free(tmp_path: Path) -> None:
    write(tmp_path, OWN | {
        f"{V2}/outer/inner/memory.max": f"{8 * GB}\n",
        f"{V2}/outer/inner/memory.current": f"{5 * GB}\n",
        f"{V2}/outer/inner/memory.stat": f"anon 1\ninactive_file {2 * GB}\nactive_file 5\n",
    })  # fmt: skip

    assert this_machine(tmp_path) == Machine(8, 8 * GB, 5 * GB)


def test_the_tightest_cgroup_counts_wherever_it_is(tmp_path: Path) -> None:
    write(tmp_path, OWN | {
        f"{V2}/outer/inner/memory.max": f"{32 * GB}\n",
        f"{V2}/outer/inner/memory.current": f"{GB}\n",
        f"{V2}/outer/memory.max": f"{16 * GB}\n",
        f"{V2}/outer/memory.current": f"{13 * GB}\n",
        f"{V2}/memory.max": "max\n",
        f"{V2}/outer/inner/cpu.max": "max 100000\n",
        f"{V2}/outer/cpu.max": "350000 100000\n",
        f"{V2}/cpu.max": "600000 100000\n",
    })  # fmt: skip

    assert this_machine(tmp_path) == Machine(3, 16 * GB, 3 * GB)


def test_a_cgroup_namespace_shows_its_own_group_at_the_root(tmp_path: Path) -> None:
    write(tmp_path, {
        "proc/self/cgroup": "0::/\n", f"{V2}/memory.max": f"{4 * GB}\n", f"{V2}/cpu.max": "200000 100000\n",
    })  # fmt: skip

    assert this_machine(tmp_path) == Machine(2, 4 * GB, 4 * GB)


def test_without_a_limit_the_cgroups_say_nothing(tmp_path: Path) -> None:
    write(
        tmp_path, OWN | {f"{V2}/outer/inner/memory.max": "max\n", f"{V2}/outer/inner/cpu.max": "max 100000\n"}
    )

    assert this_machine(tmp_path) == Machine(8, 64 * GB, 48 * GB)


def test_a_quota_below_one_cpu_leaves_one_core(tmp_path: Path) -> None:
    write(tmp_path, OWN | {f"{V2}/outer/inner/cpu.max": "50000 100000\n"})

    assert this_machine(tmp_path).cores == 1


def test_more_used_than_allowed_leaves_nothing(tmp_path: Path) -> None:
    write(tmp_path, OWN | {
        f"{V2}/outer/inner/memory.max": f"{GB}\n", f"{V2}/outer/inner/memory.current": f"{2 * GB}\n",
    })  # fmt: skip

    assert this_machine(tmp_path).available_bytes == 0


def test_a_limit_above_the_memory_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path, OWN | {f"{V2}/outer/inner/memory.max": f"{999 * GB}\n"})

    assert this_machine(tmp_path) == Machine(8, 64 * GB, 48 * GB)


def test_the_first_version_of_cgroups_is_read_too(tmp_path: Path) -> None:
    write(tmp_path, {
        "proc/self/cgroup": "5:memory:/box\n4:cpu,cpuacct:/box\n1:name=systemd:/box\n",
        f"{V2}/memory/box/memory.limit_in_bytes": f"{8 * GB}\n",
        f"{V2}/memory/box/memory.usage_in_bytes": f"{6 * GB}\n",
        f"{V2}/memory/box/memory.stat": f"total_inactive_file {GB}\ninactive_file 7\n",
        f"{V2}/memory/memory.limit_in_bytes": "9223372036854771712\n",
        f"{V2}/cpu/box/cpu.cfs_quota_us": "250000\n",
        f"{V2}/cpu/box/cpu.cfs_period_us": "100000\n",
        f"{V2}/cpu/cpu.cfs_quota_us": "-1\n",
        f"{V2}/cpu/cpu.cfs_period_us": "100000\n",
    })  # fmt: skip

    assert this_machine(tmp_path) == Machine(2, 8 * GB, 3 * GB)


def test_files_that_say_nonsense_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path, OWN | {
        f"{V2}/outer/inner/memory.max": "\n", f"{V2}/outer/inner/cpu.max": "100000\n",
        f"{V2}/outer/memory.max": "much\n",
    })  # fmt: skip

    assert this_machine(tmp_path) == Machine(8, 64 * GB, 48 * GB)


def test_a_path_outside_of_what_is_mounted_falls_back_to_the_mount(tmp_path: Path) -> None:
    write(tmp_path, {"proc/self/cgroup": "0::/docker/0123\n", f"{V2}/memory.max": f"{2 * GB}\n"})

    assert this_machine(tmp_path).memory_bytes == 2 * GB


def test_this_very_machine_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    machine = this_machine()

    assert 1 <= machine.cores <= (os.cpu_count() or 1)
    assert 0 < machine.available_bytes <= machine.memory_bytes
