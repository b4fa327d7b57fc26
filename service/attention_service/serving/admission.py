"""Admission: how many calls run, how much memory they take, and who waits.

All of it happens on the event loop's thread; only the work itself runs in others.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from time import perf_counter
from typing import TypeVar

from attention_service.priority import step_back
from attention_service.serving.line import Line, Ride, Waiting
from attention_wire.problems import Code, ProblemError

Result = TypeVar("Result")
# A caller may take this part of the queue, so that others find room in it.
_PART_OF_ONE = 2
# Three that wait, and the one before them.
_MEANS_OF_WAIT = 4


class _Kind:
    """The places of one kind of calls, and the line before them.

    Attributes:
        running: places that are taken.
        computing: what the calls that compute in them count as.
        mean_seconds: of a place, for each call that was computed in it.
    """

    def __init__(self, places: int) -> None:
        self.places = places
        self.running = 0
        self.computing = 0
        self.line = Line()
        self.mean_seconds = 0.0


class Place:
    """The place of a call that runs, and the memory that it takes.

    Args:
        release: gives back the place, or not, and a number of bytes.
        peak_bytes: the memory that it takes at first.
        count: how many calls the call counts as.
        is_shared: whether another call computes it in a place of its own.

    Attributes:
        is_shared: as given.
        count: how many calls are computed here.
        started: when it was taken, by ``perf_counter``.
    """

    def __init__(
        self,
        release: Callable[[Place, int], None],
        peak_bytes: int,
        count: int,
        *,
        is_shared: bool = False,
    ) -> None:
        self.is_shared = is_shared
        self.count = count
        self.started = perf_counter()
        self.runs = not is_shared
        self._release = release
        self._bytes = peak_bytes

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
        self._release(self, freed)
        self.runs = False


class Admission:
    """Places for running calls, under a memory budget, with bounded queues.

    Small calls have places of their own, so they never wait for the end of a large one. They
    are small in memory too, and stand outside of the budget. Those that can be computed together
    have fewer places: the calls that come meanwhile are the next batch, and one batch takes less
    than two halves of it.

    Args:
        max_running: large calls that compute at once.
        max_waiting: calls of a kind that may wait; one more is refused, and of one caller half
            of them.
        budget_bytes: memory that large calls may take together.
        max_small: small calls that compute at once; half of as many if they could share a
            computation.
        max_wait: seconds that a call may be expected to wait; of calls that take long, three
            times what one takes.

    Attributes:
        budget_bytes, max_waiting: as given.
        places: calls that can compute at once, of all kinds.
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
        self.max_waiting = max_waiting
        self._max_wait = max_wait
        self._large, self._small = _Kind(max_running), _Kind(max_small)
        self._shared = _Kind(max(1, max_small // 2))
        self._used_bytes = 0
        self.places = sum(kind.places for kind in self._kinds)
        self._threads = ThreadPoolExecutor(self.places, "compute", step_back)

    @property
    def waiting(self) -> int:
        """Calls in the queues."""
        return sum(len(kind.line) for kind in self._kinds)

    @property
    def running(self) -> int:
        """Calls that compute."""
        return sum(kind.running for kind in self._kinds)

    @property
    def used_bytes(self) -> int:
        """Predicted memory of the large calls that run or hold an answer."""
        return self._used_bytes

    async def run(self, work: Callable[[], Result]) -> Result:
        """Run admitted work in a thread of the pool, to its end; its exceptions are raised here."""
        return await to_its_end(asyncio.get_running_loop().run_in_executor(self._threads, work))

    @asynccontextmanager
    async def place(
        self,
        peak_bytes: int,
        caller: str = "",
        *,
        is_small: bool = False,
        count: int = 1,
        ride: Ride | None = None,
    ) -> AsyncIterator[Place]:
        """Hold a place while a call runs and its answer is sent.

        Args:
            peak_bytes: memory that the call takes, at most ``budget_bytes``.
            caller: whose call it is; "" where that is not known, and then it has no share.
            is_small: whether it takes little time and memory.
            count: how many calls it counts as.
            ride: how it can be computed with others; then the place may be a shared one.

        Raises:
            ProblemError: ``queue_full``, with the seconds after which the queue is shorter.
        """
        kind = self._kind(ride, is_small=is_small)
        peak_bytes = 0 if is_small else peak_bytes
        if kind.line or not self._fits(kind, peak_bytes):
            if problem := self._no_room(kind, caller, count):
                raise problem
            turn: asyncio.Future[Place] = asyncio.get_running_loop().create_future()
            place = await self._wait(kind, Waiting(caller, peak_bytes, count, ride, turn))
        else:
            place = self._take(kind, peak_bytes, count)
        try:
            yield place
        finally:
            place.leave()

    def companions(self, place: Place, ride: Ride, room: int, *, is_small: bool) -> list[Ride]:
        """Calls that waited and go on now, to be computed in a place that is another's.

        Args:
            place: of the call that computes them.
            ride: of that call.
            room: bytes that its computation has, itself included.
            is_small: which kind it is.
        """
        kind = self._kind(ride, is_small=is_small)
        room -= ride.size
        rides = []
        for waiting, other in kind.line.with_key(ride.key):
            if waiting.turn.cancelled():  # its caller is gone, but has not run since
                continue
            if other.size > room or not self._has_memory(waiting.peak_bytes):
                break
            room -= other.size
            place.count += waiting.count
            kind.computing += waiting.count
            kind.line.remove(waiting)
            waiting.turn.set_result(
                self._take(kind, waiting.peak_bytes, waiting.count, is_shared=True)
            )
            rides.append(other)
        return rides

    def check_room(self, caller: str) -> None:
        """Refuse a large call that would find the queue full, before its body is read.

        Raises:
            ProblemError: ``queue_full``.
        """
        if self._large.line and (problem := self._no_room(self._large, caller, 1)):
            raise problem

    def close(self) -> None:
        """Let the threads end once their work is done."""
        self._threads.shutdown(wait=True)

    @property
    def _kinds(self) -> tuple[_Kind, ...]:
        return self._small, self._shared, self._large

    def _kind(self, ride: Ride | None, *, is_small: bool) -> _Kind:
        if not is_small:
            return self._large
        return self._small if ride is None else self._shared

    def _has_memory(self, peak_bytes: int) -> bool:
        return not peak_bytes or self._used_bytes + peak_bytes <= self.budget_bytes

    def _fits(self, kind: _Kind, peak_bytes: int) -> bool:
        return kind.running < kind.places and self._has_memory(peak_bytes)

    def _take(self, kind: _Kind, peak_bytes: int, count: int, *, is_shared: bool = False) -> Place:
        if not is_shared:
            kind.running += 1
            kind.computing += count
        self._used_bytes += peak_bytes
        return Place(partial(self._release, kind), peak_bytes, count, is_shared=is_shared)

    def _release(self, kind: _Kind, place: Place, freed: int) -> None:
        if place.runs:
            seconds = (perf_counter() - place.started) / place.count
            kind.mean_seconds += 0.2 * (seconds - kind.mean_seconds)
            kind.running -= 1
            kind.computing -= place.count
        self._used_bytes -= freed
        self._wake()

    def _no_room(self, kind: _Kind, caller: str, count: int) -> ProblemError | None:
        waiting, own = len(kind.line), kind.line.of(caller)
        most_of_one = math.ceil(self.max_waiting / _PART_OF_ONE)
        seconds = kind.mean_seconds * (waiting + kind.computing) / kind.places
        longest = max(self._max_wait, _MEANS_OF_WAIT * kind.mean_seconds)
        if _is_full(waiting, count, self.max_waiting):
            what = f"{waiting} calls are waiting, as many as may"
        elif caller and _is_full(own, count, most_of_one):
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

    async def _wait(self, kind: _Kind, waiting: Waiting) -> Place:
        kind.line.append(waiting)
        try:
            place: Place = await waiting.turn
        except asyncio.CancelledError:
            if waiting.turn.cancelled():
                kind.line.remove(waiting)
                self._wake()
            else:
                self._give_up(waiting.turn.result(), waiting.ride)
            raise
        return place

    def _give_up(self, place: Place, ride: Ride | None) -> None:
        """Leave a place that was just taken; a shared computation keeps its memory to its end."""
        if place.is_shared and ride is not None:
            ride.finished.add_done_callback(lambda _: place.leave())
        else:
            place.leave()

    def _wake(self) -> None:
        for kind in self._kinds:
            while (first := kind.line.first()) and self._fits(kind, first.peak_bytes):
                kind.line.pop()
                if not first.turn.cancelled():  # its caller is gone, but has not run since
                    first.turn.set_result(self._take(kind, first.peak_bytes, first.count))


def _is_full(waiting: int, count: int, most: int) -> bool:
    # What counts as more than may wait can wait alone.
    return waiting >= most or (waiting > 0 and waiting + count > most)


async def to_its_end(work: asyncio.Future[Result]) -> Result:
    """Wait for work in a thread; its exceptions are raised here.

    A caller that is cancelled meanwhile still waits: no thread can be stopped, and until it
    ends the work takes its place and its memory.
    """
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait([work])
        except asyncio.CancelledError as error:
            cancelled = error
    try:
        if cancelled is not None:
            work.exception()  # looked at, or asyncio complains of it
            raise cancelled
        return work.result()
    finally:
        # An error holds this frame: a frame that holds the error keeps all arrays of its call.
        del cancelled, work
