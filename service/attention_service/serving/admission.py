"""Admission: how many calls run, how much memory they take, and who waits.

All of it happens on the event loop's thread; only the work itself runs in others.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from time import perf_counter
from typing import NamedTuple, TypeVar

from attention_wire.problems import Code, ProblemError

Result = TypeVar("Result")
# A caller may take this part of the queue, so that others find room in it.
_PART_OF_ONE = 2
_MEANS_OF_WAIT = 3


class _Waiting(NamedTuple):
    peak_bytes: int
    turn: asyncio.Future[None]


class _Line:
    """Calls that wait: each caller's in their order, the callers in turn."""

    def __init__(self) -> None:
        self._callers: dict[str, deque[_Waiting]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._callers.values()))

    def of(self, caller: str) -> int:
        """How many of one caller wait."""
        return len(self._callers.get(caller, ()))

    def append(self, caller: str, waiting: _Waiting) -> None:
        self._callers.setdefault(caller, deque()).append(waiting)

    def first(self) -> _Waiting | None:
        """The next one, left where it is."""
        return next((calls[0] for calls in self._callers.values()), None)

    def pop(self) -> None:
        """Take the next one out; then it is another caller's turn."""
        caller = next(iter(self._callers))
        calls = self._callers.pop(caller)
        calls.popleft()
        if calls:
            self._callers[caller] = calls

    def remove(self, caller: str, waiting: _Waiting) -> None:
        """Take one out wherever it stands, if it still does."""
        calls = self._callers.get(caller, deque())
        if waiting in calls:
            calls.remove(waiting)
            if not calls:
                del self._callers[caller]


class _Kind:
    """The places of small or of large calls, and the line before them."""

    def __init__(self, places: int) -> None:
        self.places = places
        self.running = 0
        self.line = _Line()
        self.mean_seconds = 0.0


class Place:
    """A running call's place, and the memory that it takes.

    Args:
        release: gives back a number of places and of bytes.
        peak_bytes: the memory that it takes at first.
    """

    def __init__(self, release: Callable[[int, int], None], peak_bytes: int) -> None:
        self._release = release
        self._bytes = peak_bytes
        self._runs = True

    def computed(self, kept_bytes: int) -> None:
        """Let the next one run: from here on the call only holds its answer.

        Args:
            kept_bytes: memory that it still takes, until the place is left.
        """
        self._give_back(min(kept_bytes, self._bytes))

    def leave(self) -> None:
        """Give back all that is left."""
        self._give_back(0)

    def _give_back(self, kept_bytes: int) -> None:
        freed, self._bytes = self._bytes - kept_bytes, kept_bytes
        places, self._runs = int(self._runs), False
        self._release(places, freed)


class Admission:
    """Places for running calls, under a memory budget, with bounded queues.

    Small calls have places of their own, so they never wait for the end of a large one. They
    are small in memory too, and stand outside of the budget.

    Args:
        max_running: large calls that compute at once.
        max_waiting: calls of a kind that may wait; one more is refused, and of one caller half
            of them.
        budget_bytes: memory that large calls may take together.
        max_small: small calls that compute at once.
        max_wait: seconds that a call may be expected to wait; of calls that take long, three
            times what one takes.
    """

    def __init__(
        self,
        max_running: int,
        max_waiting: int,
        budget_bytes: int,
        max_small: int = 2,
        max_wait: float = math.inf,
    ) -> None:
        self.budget_bytes = budget_bytes
        self._max_waiting = max_waiting
        self._max_wait = max_wait
        self._large, self._small = _Kind(max_running), _Kind(max_small)
        self._used_bytes = 0
        self._threads = ThreadPoolExecutor(max_running + max_small, "compute")

    @property
    def waiting(self) -> int:
        """Calls in the queues."""
        return len(self._large.line) + len(self._small.line)

    @property
    def running(self) -> int:
        """Calls that compute."""
        return self._large.running + self._small.running

    @property
    def used_bytes(self) -> int:
        """Predicted memory of the large calls that run or hold an answer."""
        return self._used_bytes

    async def run(self, work: Callable[[], Result]) -> Result:
        """Run admitted work in a thread of the pool; its exceptions are raised here.

        A caller that is cancelled meanwhile still waits: no thread can be stopped, and until
        it ends the work takes its place and its memory.
        """
        done = asyncio.get_running_loop().run_in_executor(self._threads, work)
        cancelled: asyncio.CancelledError | None = None
        while not done.done():
            try:
                await asyncio.wait([done])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            done.exception()  # looked at, or asyncio complains of it
            raise cancelled
        return done.result()

    @asynccontextmanager
    async def place(
        self, peak_bytes: int, caller: str = "", *, is_small: bool = False
    ) -> AsyncIterator[Place]:
        """Hold a place while a call runs and its answer is sent.

        Args:
            peak_bytes: memory that the call takes, at most ``budget_bytes``.
            caller: whose call it is; "" where that is not known, and then it has no share.
            is_small: whether it takes little time and memory.

        Raises:
            ProblemError: ``queue_full``, with the seconds after which the queue is shorter.
        """
        kind = self._small if is_small else self._large
        peak_bytes = 0 if is_small else peak_bytes
        if kind.line or not self._fits(kind, peak_bytes):
            await self._wait(kind, peak_bytes, caller)
        else:
            self._take(kind, peak_bytes)
        started = perf_counter()

        def release(places: int, freed: int) -> None:
            if places:
                kind.mean_seconds += 0.2 * (perf_counter() - started - kind.mean_seconds)
            kind.running -= places
            self._used_bytes -= freed
            self._wake()

        place = Place(release, peak_bytes)
        try:
            yield place
        finally:
            place.leave()

    def check_room(self, caller: str) -> None:
        """Refuse a large call that would find the queue full, before its body is read.

        Raises:
            ProblemError: ``queue_full``.
        """
        if self._large.line and (problem := self._no_room(self._large, caller)):
            raise problem

    def close(self) -> None:
        """Let the threads end once their work is done."""
        self._threads.shutdown(wait=True)

    def _fits(self, kind: _Kind, peak_bytes: int) -> bool:
        has_memory = self._used_bytes + peak_bytes <= self.budget_bytes
        return kind.running < kind.places and (has_memory or not peak_bytes)

    def _take(self, kind: _Kind, peak_bytes: int) -> None:
        kind.running += 1
        self._used_bytes += peak_bytes

    def _no_room(self, kind: _Kind, caller: str) -> ProblemError | None:
        waiting, own = len(kind.line), kind.line.of(caller)
        most_of_one = math.ceil(self._max_waiting / _PART_OF_ONE)
        seconds = kind.mean_seconds * waiting / kind.places
        longest = max(self._max_wait, _MEANS_OF_WAIT * kind.mean_seconds)
        if waiting >= self._max_waiting:
            what = f"{waiting} calls are waiting, as many as may"
        elif caller and own >= most_of_one:
            what = f"{own} of your calls are waiting, as many as one caller's may"
        elif waiting and seconds > longest:
            what = f"{waiting} calls are waiting, for {seconds:.1f} s as it seems"
        else:
            return None
        return ProblemError(
            Code.QUEUE_FULL,
            f"{what}. Send this one again after the seconds that Retry-After says.",
            retry_after=max(1, math.ceil(seconds)),
        )

    async def _wait(self, kind: _Kind, peak_bytes: int, caller: str) -> None:
        if problem := self._no_room(kind, caller):
            raise problem
        waiting = _Waiting(peak_bytes, asyncio.get_running_loop().create_future())
        kind.line.append(caller, waiting)
        try:
            await waiting.turn
        except asyncio.CancelledError:
            if waiting.turn.cancelled():
                kind.line.remove(caller, waiting)
            else:
                kind.running -= 1
                self._used_bytes -= peak_bytes
            self._wake()
            raise

    def _wake(self) -> None:
        for kind in (self._small, self._large):
            while (first := kind.line.first()) and self._fits(kind, first.peak_bytes):
                kind.line.pop()
                if not first.turn.cancelled():  # its caller is gone, but has not run since
                    self._take(kind, first.peak_bytes)
                    first.turn.set_result(None)
