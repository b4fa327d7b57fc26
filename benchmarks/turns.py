"""One turn of a measurement. Both sides run this very code, so neither is timed otherwise.

It needs nothing but Python, since it is imported in PyTorch's environment too.
"""

from __future__ import annotations

import time
from collections.abc import Callable


def turn(work: Callable[[], object], seconds: float, most: int) -> list[float]:
    """Milliseconds of each call of some work, one after the other.

    One call goes before those that count: what was evicted from the caches, or given back to
    the system and its host, while the other side had its turns is fetched by it. A result is
    dropped after its time was taken and before the next call: both sides give their memory
    back outside of what is timed, and take it inside.

    Args:
        work: what is called.
        seconds: no call begins after so long, but for the second that counts.
        most: calls that count, at most.
    """
    work()
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 2 or (len(times) < most and time.perf_counter() - begin < seconds):
        start = time.perf_counter()
        result = work()
        times.append((time.perf_counter() - start) * 1e3)
        del result
    return times
