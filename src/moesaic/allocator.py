"""The C library's memory allocator, told to keep what a step frees for the next one."""

from __future__ import annotations

import ctypes
import os

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
KEPT = 1 << 30
"""Bytes: blocks below it come from the heap, and the heap's free end is given back once it is larger."""


def keep_freed() -> bool:
    """Let blocks up to a gibibyte be reused without the kernel, in all of this process; return whether it is so now.

    A step of training frees and asks for the same hundreds of megabytes again. By default glibc hands blocks of more
    than 32 MiB back at once, and the kernel clears every page of the next ones. What is kept is at most what was in use
    at the peak, and holes. Where the environment says how glibc allocates, it stands; other C libraries do as they do.

    Reference: glibc manual, Malloc Tunable Parameters (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD).
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc" in tunables or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl and macOS have none, Windows no library of that name
        return False
    return bool(mallopt(MMAP_THRESHOLD, KEPT) and mallopt(TRIM_THRESHOLD, KEPT))
