"""The memory that large arrays leave to the next ones."""

from __future__ import annotations

import gc
import threading
import time

import numpy as np
import pytest

from attention_service.attention.pages import Pages

SHAPE = (3, 4, 700, 700)  # 23 MB
BYTES = 4 * 3 * 4 * 700 * 700
FLOAT = np.dtype(np.float32)


def address(array: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> int:
    return array.ctypes.data


def test_the_next_array_takes_over_what_the_last_one_left() -> None:
    pages = Pages()
    first = pages.empty(SHAPE, FLOAT)
    place = address(first)
    first.fill(7)
    del first
    assert pages.kept_bytes == BYTES
    second = pages.zeros(SHAPE, FLOAT)
    assert address(second) == place
    assert (second.shape, second.dtype, pages.kept_bytes) == (SHAPE, FLOAT, 0)
    assert not second.any(), "what stood there is gone"


@pytest.mark.parametrize("kind", ["view", "view of a view", "buffer"])
def test_memory_stays_while_anything_looks_at_it(kind: str) -> None:
    pages = Pages()
    array = pages.empty(SHAPE, FLOAT)
    array.fill(7)
    seen = array[1] if kind == "view" else array[1].reshape(-1)[5:].view(np.uint32)
    if kind == "buffer":
        seen = np.frombuffer(memoryview(array[1]).cast("B"), np.uint8)
    before = seen.copy()
    del array
    gc.collect()
    assert pages.kept_bytes == 0
    other = pages.zeros(SHAPE, FLOAT)
    assert not np.shares_memory(other, seen)
    assert (seen == before).all()


def test_two_arrays_never_share() -> None:
    pages = Pages()
    arrays = [pages.empty(SHAPE, FLOAT) for _ in range(3)]
    for number, array in enumerate(arrays):
        array.fill(number)
    assert [array.min() for array in arrays] == [array.max() for array in arrays] == [0, 1, 2]


def test_what_nobody_takes_is_given_back() -> None:
    pages = Pages()
    array = pages.empty(SHAPE, FLOAT)
    del array
    assert pages.kept_bytes == BYTES
    end = time.monotonic() + 10
    while pages.kept_bytes and time.monotonic() < end:
        time.sleep(0.1)
    assert pages.kept_bytes == 0


def test_no_more_is_kept_than_may_be() -> None:
    pages = Pages()
    arrays = [pages.empty((2**23,), FLOAT) for _ in range(12)]  # 32 MiB each
    arrays.clear()
    assert pages.kept_bytes == 2**28


@pytest.mark.parametrize("size", [2**22 - 1, 2**24 + 2**23])
def test_other_sizes_take_nothing_over(size: int) -> None:
    pages = Pages()
    array = pages.empty((2**24,), FLOAT)
    del array
    other = pages.zeros((size,), FLOAT)
    assert pages.kept_bytes == 2**26
    assert not other.any()


def test_threads_may_take_and_leave_at_once() -> None:
    pages, wrong = Pages(), []

    def work(number: int) -> None:
        for _ in range(30):
            array = pages.zeros((2**22,), FLOAT)
            if array[:: 2**12].any():
                wrong.append("not zero")
            array.fill(number)
            if (array[:: 2**12] != number).any():
                wrong.append("another's")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
