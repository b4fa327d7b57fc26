"""The C library's heap, set to give back what large calls took."""

from __future__ import annotations

import ctypes
import sys

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

_MAPPED_BYTES = 16 * 2**20
_KEPT_BYTES = 32 * 2**20
_ARENAS = 2


def give_back_freed() -> bool:
    """Let the heap keep no more than some megabytes that are free, in this process.

    By default glibc raises both thresholds, to 32 and 64 MiB, as large arrays come and go, and
    what was freed below them stays (mallopt(3)). Setting them ends that: arrays above the first
    are mapped each for itself, and end with their memory. By default, too, threads have up to
    eight arenas for each CPU, and each keeps what calls of all sizes left free between what they
    did not: two serve threads of which one runs Python at a time.

    Returns:
        Whether it could be set: false where the C library is another than glibc.
    """
    library = _glibc()
    if library is None:
        return False
    limits = {
        _M_MMAP_THRESHOLD: _MAPPED_BYTES,
        _M_TRIM_THRESHOLD: _KEPT_BYTES,
        _M_ARENA_MAX: _ARENAS,
    }
    return all(library.mallopt(name, limit) for name, limit in limits.items())


def give_back_now() -> bool:
    """Give back all whole pages that are free, also those between others that are not.

    After what leaves a lot behind in small pieces, such as loading a model (malloc_trim(3)).

    Returns:
        Whether it could be done: false where the C library is another than glibc.
    """
    library = _glibc()
    if library is None:
        return False
    library.malloc_trim(0)
    return True


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
