"""Memory for packed weights and KV blocks: anonymous, in 2 MiB pages where there are any, touched on use."""

import contextlib
import mmap

import numpy as np
from numpy.typing import NDArray

from penstock.errors import OutOfMemoryError

HUGE_PAGE_BYTES = 2 << 20


def reserve(num_bytes: int) -> NDArray[np.uint8]:
    """`num_bytes` zero bytes of private address space, aligned to pages, which come as they are touched.

    OutOfMemoryError when there is not that much address space.
    """
    size = max(HUGE_PAGE_BYTES, -(-num_bytes // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    try:
        memory = mmap.mmap(-1, size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    except (OSError, OverflowError):
        raise OutOfMemoryError(
            f"the system refuses {num_bytes:,} bytes of memory; ask for less, or raise its limit (ulimit -v)."
        ) from None
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)[:num_bytes]
