"""The memory of large arrays, kept for a moment after they were let go.

The C library maps a large array for itself and gives its pages back with it, so the next one
pays for fresh pages: at 75 MB as long as the products that fill them. Calls of one kind often
follow each other, and take over what the last one left.
"""

from __future__ import annotations

import math
import time
import weakref
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any

import numpy as np

from attention_service.heap import give_back_now
from attention_wire.tensors import Array

# Smaller arrays are the heap's, which keeps their pages by itself.
_LARGE_BYTES = 2**24
# An array takes over what is no larger than so many times its own bytes.
_MOST_TIMES = 1.25
_MOST_BYTES = 2**28
_KEPT_SECONDS = 1.0


class _Loan:
    """Memory that is lent: what holds it are its array, views of that, and their buffers.

    Numpy would have them hold an array that stands behind it in its place.
    """

    def __init__(self, block: Array) -> None:
        self.__array_interface__ = block.__array_interface__


class Pages:
    """Blocks of memory that large arrays leave to the next ones."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: list[tuple[float, Array]] = []
        # Filled where arrays end, which may be in the middle of anything: it never waits.
        self._left: SimpleQueue[Array | None] = SimpleQueue()
        self._sweeper: Thread | None = None

    @property
    def kept_bytes(self) -> int:
        """Of the blocks that no array uses now."""
        with self._lock:
            self._collect()
            return sum(block.nbytes for _, block in self._kept)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An array whose every element is going to be written."""
        size = math.prod(shape) * dtype.itemsize
        if size < _LARGE_BYTES:
            return np.empty(shape, dtype)
        block = self._take(size)
        return self._lent(np.empty(size, np.uint8) if block is None else block, shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An array of zeros."""
        size = math.prod(shape) * dtype.itemsize
        if size < _LARGE_BYTES:
            return np.zeros(shape, dtype)
        block = self._take(size)
        if block is None:
            return self._lent(np.zeros(size, np.uint8), shape, dtype)
        array = self._lent(block, shape, dtype)
        array.fill(0)
        return array

    def _lent(self, block: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        loan = _Loan(block[: math.prod(shape) * dtype.itemsize])
        weakref.finalize(loan, self._left.put, block).atexit = False
        self._sweep()
        array: Array = np.asarray(loan).view(dtype).reshape(shape)
        return array

    def _take(self, size: int) -> Array | None:
        """The smallest block that holds so many bytes and not many more."""
        with self._lock:
            self._collect()
            fitting = [
                at
                for at, (_, block) in enumerate(self._kept)
                if size <= block.nbytes <= _MOST_TIMES * size
            ]
            if not fitting:
                return None
            best = min(fitting, key=lambda at: self._kept[at][1].nbytes)
            return self._kept.pop(best)[1]

    def _collect(self) -> None:
        """Take in the blocks that were left, and no more of them than may be kept."""
        while True:
            try:
                block = self._left.get_nowait()
            except Empty:
                break
            if block is not None:
                self._kept.append((time.monotonic(), block))
        while sum(block.nbytes for _, block in self._kept) > _MOST_BYTES:
            self._kept.pop(0)
        if self._kept:
            self._left.put(None)  # for the sweeper, who may wait for what was taken in here

    def _sweep(self) -> None:
        with self._lock:
            if self._sweeper is None:
                self._sweeper = Thread(target=self._give_back, name="pages", daemon=True)
                self._sweeper.start()

    def _give_back(self) -> None:
        """Let blocks go that nobody took for a while."""
        while True:
            self._left.put(self._left.get())
            while self._drop_old():
                time.sleep(_KEPT_SECONDS / 2)

    def _drop_old(self) -> bool:
        """Let go what is old, and say whether anything else is kept."""
        with self._lock:
            self._collect()
            old = time.monotonic() - _KEPT_SECONDS
            young = [one for one in self._kept if one[0] > old]
            is_last = bool(self._kept) and not young
            self._kept = young
        if is_last:
            give_back_now()  # also what the same calls left free in small pieces
        return bool(young)
