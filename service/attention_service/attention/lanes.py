"""Lanes: threads that help calls with their tiles, shared fairly among the calls that run.

A call is cut into tiles of a few milliseconds. Its own thread computes them, and helpers take
the next tile of one call after the other, so no call waits for the end of another. No more tiles
compute at once than there are lanes; a call of one tile goes before those of many.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from threading import Condition, Thread
from typing import TypeAlias

from attention_service.attention.slots import Slots
from attention_service.priority import step_back

Tile: TypeAlias = Callable[[], None]


class Cancelled(Exception):
    """The call was cancelled between two of its tiles."""


def never() -> bool:
    """For calls that nobody cancels."""
    return False


class _Work:
    """The tiles of one call that are left, and how its end is told."""

    def __init__(self, tiles: deque[Tile], cancelled: Callable[[], bool]) -> None:
        self.tiles = tiles
        self.cancelled = cancelled
        self.running = 0
        self.error: BaseException | None = None

    def stop(self, error: BaseException) -> None:
        """Drop what is left; the first error is the one that is told."""
        self.error = self.error or error
        self.tiles.clear()


class Lanes:
    """Threads that help a call's own thread with its tiles.

    Args:
        count: how many tiles of one call run at once: its own thread, and all but one of these.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._slots = Slots(count)
        self._turn: deque[_Work] = deque()
        self._changed = Condition()
        self._threads: list[Thread] = []
        self._closed = False

    def run(self, tiles: Iterable[Tile], cancelled: Callable[[], bool] = never) -> None:
        """Compute tiles, in this thread and in the helpers, and return when all are done.

        Args:
            tiles: in an order that keeps what they share in the caches.
            cancelled: looked at before each tile.

        Raises:
            Cancelled: ``cancelled()`` was true; tiles that had begun are done.
            Exception: whatever a tile raised first.
        """
        work = _Work(deque(tiles), cancelled)
        if len(work.tiles) == 1:
            self._run_one(work)
            return
        if work.tiles and self.count > 1:
            with self._changed:
                self._start()
                self._turn.append(work)
                self._changed.notify(min(self.count, len(work.tiles)) - 1)
        while tile := self._next(work):
            self._compute(work, tile)
        if work.running:
            with self._changed:
                self._changed.wait_for(lambda: not work.running)
        error, work.error = work.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # it holds this frame, which would hold it: a ring with all its arrays

    def _run_one(self, work: _Work) -> None:
        if work.cancelled():
            raise Cancelled
        self._slots.take_now()
        try:
            work.tiles.pop()()
        finally:
            self._slots.give_back()

    def close(self) -> None:
        """Let the threads end once nothing is left to do."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _start(self) -> None:
        while len(self._threads) < self.count - 1:
            thread = Thread(target=self._help, name=f"lane-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _help(self) -> None:
        step_back()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._turn or self._closed)
                if not self._turn:
                    return
                work = self._turn[0]
                self._turn.rotate(-1)
            tile = self._next(work)
            if tile is not None:
                self._compute(work, tile)
            # A tile holds arrays: they go now, not when the next one comes.
            del tile, work

    def _next(self, work: _Work) -> Tile | None:
        """The next tile of a call, counted as running, or None once there is none."""
        with self._changed:
            tile = work.tiles.popleft() if work.tiles else None
            if not work.tiles and work in self._turn:
                self._turn.remove(work)
            work.running += tile is not None
            return tile

    def _compute(self, work: _Work, tile: Tile) -> None:
        self._slots.take()
        try:
            if work.cancelled():
                raise Cancelled
            tile()
        except BaseException as error:  # noqa: BLE001  told to the thread that waits for it
            with self._changed:
                work.stop(error)
        finally:
            self._slots.give_back()
        with self._changed:
            work.running -= 1
            if not work.running and not work.tiles:
                self._changed.notify_all()
