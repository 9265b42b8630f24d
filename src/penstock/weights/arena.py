"""Memory for packed weights and KV blocks: anonymous, 2 MiB pages where the system gives them, touched on use."""

import mmap

import numpy as np
from numpy.typing import NDArray

HUGE_PAGE_BYTES = 2 << 20


def reserve(num_bytes: int) -> NDArray[np.uint8]:
    """`num_bytes` zero bytes of private address space, 64-byte (page) aligned; pages come as they are touched."""
    size = max(HUGE_PAGE_BYTES, -(-num_bytes // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    memory = mmap.mmap(-1, size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)[:num_bytes]
