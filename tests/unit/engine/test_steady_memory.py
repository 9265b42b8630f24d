"""Threads share few arenas, large blocks are given back whole, and what was loaded is not looked at again."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.served import served

HEAP_BYTES = 64 << 20
PROGRAM = """
import ctypes, sys, threading
from penstock.engine.steady_memory import share_arenas

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes, libc.free.restype = [ctypes.c_void_p], None
libc.fdopen.restype, libc.malloc_info.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
libc.fflush.argtypes = [ctypes.c_void_p]
if len(sys.argv) > 1:
    assert share_arenas()
together = threading.Barrier(6)

def work():
    block = libc.malloc(1 << 16)
    together.wait()
    libc.free(block)

threads = [threading.Thread(target=work) for _ in range(6)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
for _ in range(3):  # one that is freed would raise the bound of those that are mapped
    libc.free(libc.malloc(8 << 20))
block = libc.malloc(4 << 20)
stream = libc.fdopen(1, b"w")
libc.malloc_info(0, stream)
libc.fflush(stream)
"""


def told(*arguments):
    """(arenas, blocks that are mapped alone)."""
    command = [sys.executable, "-c", PROGRAM, *arguments]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    mapped = re.findall(r'<total type="mmap" count="(\d+)"', text)
    return text.count("<heap nr="), int(mapped[-1])


def test_threads_share_arenas_and_large_blocks_are_mapped_alone():
    left_alone, num_mapped = told()
    if left_alone < 3:
        pytest.skip("this allocator gives threads no arenas of their own")
    shared, num_mapped_alone = told("share")
    assert shared <= 2
    assert num_mapped_alone == num_mapped + 1


@pytest.mark.slow
def test_the_threads_of_a_server_share_an_arena():
    """That of a thread is 64 MiB of addresses, the beginning of which is in use and the rest forbidden."""
    with served() as server:
        lines = Path(f"/proc/{server.front.pid}/maps").read_text().splitlines()
    forbidden = [line.split()[0].split("-") for line in lines if line.split()[1] == "---p"]
    ends = {int(end, 16) for begin, end in forbidden if int(begin, 16) % HEAP_BYTES}
    assert len([end for end in ends if end % HEAP_BYTES == 0]) <= 1
