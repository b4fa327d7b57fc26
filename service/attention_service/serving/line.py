"""Lines: the calls that wait for a place, each caller's in their order, the callers in turn."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any


@dataclass(frozen=True, slots=True, eq=False)
class Ride:
    """How a call can be computed together with others.

    Attributes:
        key: calls of an equal key can share a computation.
        size: bytes that it adds to a shared one.
        call: what is computed, as whoever computes it knows it.
        finished: done when the computation has ended.
    """

    key: Hashable
    size: int
    call: Any
    finished: asyncio.Future[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """A call that waits.

    Attributes:
        caller: whose it is.
        peak_bytes: memory that it takes out of the budget.
        count: how many calls it counts as.
        ride: None for one that is computed alone.
        turn: done when it may go on, in this place.
    """

    caller: str
    peak_bytes: int
    count: int
    ride: Ride | None
    turn: asyncio.Future[Any]


class Line:
    """Calls that wait. Its length is what they count as."""

    def __init__(self) -> None:
        self._callers: dict[str, deque[Waiting]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def of(self, caller: str) -> int:
        """What the calls of one caller count as."""
        return sum(waiting.count for waiting in self._callers.get(caller, ()))

    def append(self, waiting: Waiting) -> None:
        """Let one wait behind its caller's others."""
        self._callers.setdefault(waiting.caller, deque()).append(waiting)
        self._count += waiting.count

    def first(self) -> Waiting | None:
        """The next one, left where it is."""
        return next((calls[0] for calls in self._callers.values()), None)

    def pop(self) -> None:
        """Take the next one out; then it is another caller's turn."""
        caller = next(iter(self._callers))
        calls = self._callers.pop(caller)
        self._count -= calls.popleft().count
        if calls:
            self._callers[caller] = calls

    def remove(self, waiting: Waiting) -> None:
        """Take one out wherever it stands, if it still does."""
        calls = self._callers.get(waiting.caller, deque())
        if waiting in calls:
            calls.remove(waiting)
            self._count -= waiting.count
            if not calls:
                del self._callers[waiting.caller]

    def with_key(self, key: Hashable) -> list[tuple[Waiting, Ride]]:
        """Those that can share a computation of that key, in the order of their turns."""
        rounds = zip_longest(*self._callers.values())
        waiting = (call for one_each in rounds for call in one_each if call is not None)
        return [(call, call.ride) for call in waiting if call.ride and call.ride.key == key]
