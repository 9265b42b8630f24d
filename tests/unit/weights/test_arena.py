import mmap
from pathlib import Path

import pytest

from penstock.errors import OutOfMemoryError
from penstock.weights.arena import reserve


@pytest.mark.parametrize("num_bytes", [0, 1, 64, 4096, (2 << 20) + 1])
def test_memory_is_zero_writable_of_its_size_and_aligned_to_pages(num_bytes: int) -> None:
    memory = reserve(num_bytes)

    assert memory.nbytes == num_bytes
    assert not memory.any()
    if num_bytes:
        memory[-1] = 7
        assert memory[-1] == 7
        assert memory.ctypes.data % mmap.PAGESIZE == 0


def test_reserving_takes_address_space_and_no_memory() -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    before = resident_bytes()
    memory = reserve(1 << 30)
    memory[0] = memory[-1] = 1

    assert memory[1 << 29] == 0
    assert resident_bytes() - before < 64 << 20


def test_more_than_an_address_space_is_refused_in_one_line() -> None:
    for num_bytes in (1 << 56, 1 << 63, 1 << 70):
        with pytest.raises(OutOfMemoryError) as caught:
            reserve(num_bytes)

        assert f"{num_bytes:,}" in str(caught.value)
