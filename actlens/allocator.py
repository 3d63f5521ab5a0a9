"""How the process's memory allocator treats large buffers."""

import ctypes


def keep_freed_memory() -> bool:
    """Let freed buffers be used again instead of going back to the system; for whole programs.

    glibc returns every large buffer at once, so that each activation costs fresh page faults. The
    setting holds for the process until it ends: programs call it, the library never does.

    Returns:
        Whether the C library took the setting (glibc does, others do not).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    trim_threshold, mmap_max = -1, -4  # malloc.h
    return bool(mallopt(mmap_max, 0)) and bool(mallopt(trim_threshold, 2**31 - 1))
