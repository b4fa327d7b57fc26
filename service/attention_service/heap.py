"""The C library's heap, set to give back what large calls took."""

from __future__ import annotations

import ctypes
import sys

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

_MAPPED_BYTES = 4 * 2**20
_KEPT_BYTES = 2 * 2**20


def give_back_freed() -> bool:
    """Let the heap keep no more than a few megabytes that are free, in this process.

    By default glibc raises both thresholds, to 32 and 64 MiB, as large arrays come and go, and
    what was freed below them stays (mallopt(3)). Setting them ends that: arrays above the first
    are mapped each for itself, and end with their memory.

    Returns:
        Whether it could be set: false where the C library is another than glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    mapped = library.mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
    return bool(mapped and library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES))
