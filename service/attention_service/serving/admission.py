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
from typing import TypeVar

from attention_wire.problems import Code, ProblemError

Result = TypeVar("Result")


class Admission:
    """Places for running calls, under a memory budget, with a bounded first-come queue.

    Args:
        max_running: calls that compute at once.
        max_waiting: calls that may wait; one more is refused.
        budget_bytes: memory that running calls may take together.
    """

    def __init__(self, max_running: int, max_waiting: int, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._running = 0
        self._used_bytes = 0
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._mean_seconds = 0.0
        self._threads = ThreadPoolExecutor(max_running, "compute")

    @property
    def waiting(self) -> int:
        """Calls in the queue."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Calls that compute."""
        return self._running

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
    async def place(self, peak_bytes: int) -> AsyncIterator[None]:
        """Hold a place while a call runs.

        Args:
            peak_bytes: memory that the call takes, at most ``budget_bytes``.

        Raises:
            ProblemError: ``queue_full``, with the seconds after which the queue is shorter.
        """
        if self._queue or not self._fits(peak_bytes):
            await self._wait(peak_bytes)
        else:
            self._take(peak_bytes)
        started = perf_counter()
        try:
            yield
        finally:
            self._mean_seconds += 0.2 * (perf_counter() - started - self._mean_seconds)
            self._running -= 1
            self._used_bytes -= peak_bytes
            self._wake()

    def close(self) -> None:
        """Let the threads end once their work is done."""
        self._threads.shutdown(wait=True)

    def _fits(self, peak_bytes: int) -> bool:
        has_memory = self._used_bytes + peak_bytes <= self.budget_bytes
        return self._running < self._max_running and has_memory

    def _take(self, peak_bytes: int) -> None:
        self._running += 1
        self._used_bytes += peak_bytes

    async def _wait(self, peak_bytes: int) -> None:
        if len(self._queue) >= self._max_waiting:
            seconds = self._mean_seconds * len(self._queue) / self._max_running
            raise ProblemError(
                Code.QUEUE_FULL,
                f"{len(self._queue)} calls are waiting, as many as may. Send this one again after "
                "the seconds that Retry-After says.",
                retry_after=max(1, math.ceil(seconds)),
            )
        turn = asyncio.get_running_loop().create_future()
        self._queue.append((peak_bytes, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self._running -= 1
                self._used_bytes -= peak_bytes
            elif (peak_bytes, turn) in self._queue:
                self._queue.remove((peak_bytes, turn))
            self._wake()
            raise

    def _wake(self) -> None:
        while self._queue and self._fits(self._queue[0][0]):
            peak_bytes, turn = self._queue.popleft()
            if not turn.cancelled():  # its caller is gone, but has not run since
                self._take(peak_bytes)
                turn.set_result(None)
