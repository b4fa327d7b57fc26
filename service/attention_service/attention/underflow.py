"""Underflow: float32 is computed without its subnormal numbers, as if they were 0.

The exponential of a masked score, or of one far below its row's largest, is such a number on
its way to 0, and some processors take a hundred times as long for it
(docs/decisions/0031-underflow.md).
"""

from __future__ import annotations

import ctypes
import platform
import sys
from contextlib import AbstractContextManager, nullcontext

# Of MXCSR, the register of Intel's manual, volume 1, 10.2.3: what underflows becomes 0, what is
# subnormal counts as 0, no exception traps.
_FLUSH_TO_ZERO, _DENORMALS_ARE_ZERO, _NO_TRAPS = 0x8000, 0x0040, 0x1F80
# Where it stands in a `fenv_t` of x86-64, in words of 32 bits.
_WORDS, _MXCSR = 8, 7
_Environment = ctypes.c_uint32 * _WORDS


class _WithoutSubnormals(AbstractContextManager[None]):
    """While the block runs, in this thread: ONNX Runtime's ``session.set_denormal_as_zero``.

    That option reaches the threads of a session's pool, but not the one that calls.
    """

    def __init__(self) -> None:
        # One that keeps Python's lock: each call takes less than giving the lock away.
        library = ctypes.PyDLL("libm.so.6")
        usual = _Environment()
        library.fegetenv(usual)
        usual[_MXCSR] = _NO_TRAPS
        without = _Environment(*usual)
        without[_MXCSR] |= _FLUSH_TO_ZERO | _DENORMALS_ARE_ZERO
        self._set = library.fesetenv
        self._usual, self._without = ctypes.byref(usual), ctypes.byref(without)

    def __enter__(self) -> None:
        self._set(self._without)

    def __exit__(self, *_: object) -> None:
        self._set(self._usual)


def _without_subnormals() -> AbstractContextManager[None]:
    if not (sys.platform.startswith("linux") and platform.machine() == "x86_64"):
        return nullcontext()
    try:
        return _WithoutSubnormals()
    except OSError:  # another C library than glibc
        return nullcontext()


# Nobody's state but that of the thread that enters it, so one is enough for all.
WITHOUT_SUBNORMALS = _without_subnormals()
WITH_SUBNORMALS = nullcontext()
