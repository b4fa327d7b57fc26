"""Slots: how many tiles compute at once, whoever computes them."""

from __future__ import annotations

from collections import deque
from threading import Event, Lock


class Slots:
    """As many slots as there are CPUs to compute on, taken in turn.

    Threads of calls that have many tiles wait for a slot before each. A call of a single tile
    does not: it computes at once, and until it ends the others leave a slot free for it.

    Args:
        count: tiles that compute at once.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._taken = 0
        self._line: deque[Event] = deque()
        self._lock = Lock()

    def take(self) -> None:
        """Take the next slot that is free, after all who wait already."""
        with self._lock:
            if not self._line and self._taken < self._count:
                self._taken += 1
                return
            turn = Event()
            self._line.append(turn)
        turn.wait()

    def take_now(self) -> None:
        """Take a slot whether one is free or not."""
        with self._lock:
            self._taken += 1

    def give_back(self) -> None:
        """Let the next one take it."""
        with self._lock:
            self._taken -= 1
            while self._line and self._taken < self._count:
                self._taken += 1
                self._line.popleft().set()
