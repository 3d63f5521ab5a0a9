"""How the process's memory allocator treats large buffers."""

import ctypes


def keep_freed_memory() -> bool:
    """Let freed buffers be used again instead of going back to the system; for whole programs.

    glibc returns every large buffer at once, so that each activation costs fresh page faults, and
    threads other than the first cannot keep large ones at all: here all share one heap. The setting
    holds for the process until it ends: programs call it, the library never does.

    Returns:
        Whether the C library took the setting (glibc does, others do not).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # malloc.h
    taken = [mallopt(mmap_max, 0), mallopt(trim_threshold, 2**31 - 1), mallopt(arena_max, 1)]
    return all(taken)
