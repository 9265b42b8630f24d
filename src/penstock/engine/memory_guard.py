"""How full the memory is that this server may use: that of its cgroup, or else of the machine.

Asked by AsyncEngine each second, so that it sheds load before the kernel ends processes.
"""

from collections.abc import Callable
from enum import IntEnum

from penstock.engine.serving import Limits
from penstock.planner.machine import this_machine


class Pressure(IntEnum):
    NONE = 0
    SHED = 1  # new calls are refused
    ABORT = 2  # the youngest call is ended, one each second


def memory_share() -> float:
    """Share of the memory that is in use, page cache not counted: 0 to 1."""
    machine = this_machine()
    return 1 - machine.available_bytes / machine.memory_bytes


class MemoryGuard:
    def __init__(self, limits: Limits, share: Callable[[], float] = memory_share) -> None:
        self._limits = limits
        self._share = share
        self.share = 0.0
        self.pressure = Pressure.NONE

    def look(self) -> Pressure:
        self.share = self._share()
        if self.share >= self._limits.abort_memory:
            self.pressure = Pressure.ABORT
        elif self.share >= self._limits.shed_memory:
            self.pressure = Pressure.SHED
        else:
            self.pressure = Pressure.NONE
        return self.pressure
