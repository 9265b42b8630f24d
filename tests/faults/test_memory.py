"""Memory runs short: what the server reads of it, what it does, and whom a kill by the kernel blames.

The files that the kernel would write are written here instead, and the kernel's counter of kills is counted
up by hand; test_cgroup.py has the kernel itself do it, where it may make a cgroup.
"""

import asyncio
import os
import signal

import pytest
from tests.fakes.served import PATIENT, ask, engine_pid, served, until

from penstock.engine import supervisor
from penstock.engine.memory_guard import MemoryGuard, Pressure
from penstock.engine.serving import Limits
from penstock.errors import RequestPoisonedError
from penstock.planner.machine import this_machine

LIMIT = 256 << 20  # of the cgroup: far below any machine's memory


def cgroup(root, version, used, cached):
    """The files of a cgroup around this process, in the old or the new layout."""
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    if version == 2:
        (root / "proc/self/cgroup").write_text("0::/box\n")
        folder = root / "sys/fs/cgroup/box"
        names = ("memory.max", "memory.current", "inactive_file")
    else:
        (root / "proc/self/cgroup").write_text("4:memory:/box\n")
        folder = root / "sys/fs/cgroup/memory/box"
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{LIMIT}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{names[2]} {cached}\n")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("used", "cached", "pressure"),
    [
        (0.50, 0.00, Pressure.NONE),
        (0.99, 0.50, Pressure.NONE),  # what is cached of files the kernel takes back
        (0.91, 0.00, Pressure.SHED),
        (0.96, 0.00, Pressure.ABORT),
        (1.00, 0.00, Pressure.ABORT),
    ],
)
def test_the_limit_of_a_cgroup_is_the_servers_memory(tmp_path, version, used, cached, pressure):
    cgroup(tmp_path, version, int(used * LIMIT), int(cached * LIMIT))
    machine = this_machine(tmp_path)
    assert machine.memory_bytes == LIMIT
    guard = MemoryGuard(Limits(), lambda: 1 - machine.available_bytes / machine.memory_bytes)

    assert guard.look() is pressure


@pytest.mark.slow
def test_who_makes_the_kernel_kill_twice_is_quarantined_and_who_is_killed_by_hand_is_not(monkeypatch):
    kills = 0
    monkeypatch.setattr(supervisor, "count_oom_kills", lambda: kills)

    async def killed_once(engine):
        pid = engine_pid(engine)
        before = engine.metrics.output_tokens._value.get()
        await until(lambda: engine.metrics.output_tokens._value.get() > before)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: engine_pid(engine) not in (None, pid))

    async def run():
        nonlocal kills
        async with served(PATIENT) as engine:
            asking = asyncio.create_task(ask(engine, "def f(", max_tokens=1900))
            for _ in range(3):
                await killed_once(engine)  # nobody is to blame
            assert not asking.done()
            asking.cancel()
            eater = asyncio.create_task(ask(engine, [5, 6, 7], max_tokens=1900))
            await until(lambda: len(engine._desk.dispatcher.given) == 1)
            for _ in range(2):  # before it has a token: it alone can have eaten the memory
                await until(lambda: engine.health().ready)
                pid = engine_pid(engine)
                engine._desk.dispatcher.has_got_on = lambda entry, now_s: None
                kills += 1
                os.kill(pid, signal.SIGKILL)
                await until(lambda pid=pid: engine_pid(engine) not in (None, pid))
            with pytest.raises(RequestPoisonedError):
                await eater

    asyncio.run(run())
