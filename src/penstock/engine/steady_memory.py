"""Keeps the memory of a process that serves for days where it was after its first minutes.

`penstock serve` calls both functions, the engine process (one thread that allocates) the second, each once.
Nothing here changes an answer; where the system's allocator takes no such settings, it is left as it is.
"""

import ctypes
import gc
from typing import Final

# glibc's mallopt. Left alone, each thread has an arena of its own, whose holes no other thread fills; and one
# large block that was freed lets all later ones of its size leave holes, too, instead of being mapped alone.
M_MMAP_THRESHOLD: Final = -3
M_ARENA_MAX: Final = -8
MAX_ARENAS: Final = 2
MAPPED_ALONE_BYTES: Final = 128 << 10


def share_arenas() -> bool:
    """Before any thread is started. False: this allocator takes no such settings."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(M_ARENA_MAX, MAX_ARENAS) and mallopt(M_MMAP_THRESHOLD, MAPPED_ALONE_BYTES))


def freeze_loaded() -> None:
    """What was loaded stays: collections look at what requests leave alone, and come before much is left.

    A full collection waits until a quarter of what there is has been added, most of which never goes.
    """
    gc.collect()
    gc.freeze()
