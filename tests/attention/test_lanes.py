"""Lanes: tiles of several calls beside each other, errors, and cancelling between tiles."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable
from itertools import pairwise
from threading import Barrier, Lock, Thread
from typing import Any

import numpy as np
import pytest

from attention_service.attention.engine import Engine
from attention_service.attention.lanes import Cancelled, Lanes
from attention_service.attention.sdpa import AttentionJob
from attention_wire.schemas import AttentionRequest
from tests.waiting import wait_until


@pytest.fixture
def lanes() -> Lanes:
    return Lanes(2)


def test_every_tile_runs_once_and_two_beside_each_other(lanes: Lanes) -> None:
    both = Barrier(2, timeout=10)
    ran: list[int] = []

    def tile(number: int) -> None:
        if number < 2:
            both.wait()  # passes only if another thread computes meanwhile
        ran.append(number)

    lanes.run([lambda n=number: tile(n) for number in range(20)])
    assert sorted(ran) == list(range(20))


def test_no_tiles_and_one_tile(lanes: Lanes) -> None:
    lanes.run([])
    threads: list[Thread] = []
    lanes.run([lambda: threads.append(threading.current_thread())])
    assert threads == [threading.current_thread()]


def test_the_first_error_is_raised_and_the_rest_dropped(lanes: Lanes) -> None:
    ran: list[int] = []

    def tile(number: int) -> None:
        ran.append(number)
        if number == 3:
            raise ZeroDivisionError("tile 3")
        time.sleep(0.001)

    with pytest.raises(ZeroDivisionError, match="tile 3"):
        lanes.run([lambda n=number: tile(n) for number in range(1000)])
    assert len(ran) < 1000
    lanes.run([lambda: ran.append(-1)] * 5)
    assert ran[-5:] == [-1] * 5


def test_a_call_is_cancelled_between_two_tiles(lanes: Lanes) -> None:
    ran: list[int] = []
    with pytest.raises(Cancelled):
        lanes.run([lambda: ran.append(0)] * 1000, lambda: len(ran) >= 10)
    assert 10 <= len(ran) <= 12


def test_a_small_call_does_not_wait_for_the_end_of_a_large_one(lanes: Lanes) -> None:
    has_begun = threading.Event()

    def large_tile() -> None:
        has_begun.set()
        time.sleep(0.005)

    large = Thread(target=lanes.run, args=([large_tile] * 200,))
    large.start()
    assert has_begun.wait(10)
    lanes.run([lambda: None] * 6)
    assert large.is_alive()
    large.join()


def test_helpers_end_when_they_are_closed(lanes: Lanes) -> None:
    lanes.run([lambda: None] * 4)
    helpers = list(lanes._threads)
    assert len(helpers) == 1
    lanes.close()
    assert not any(thread.is_alive() for thread in helpers)


def job(engine: Engine, length: int, **fields: Any) -> AttentionJob:
    tensor = np.random.default_rng(0).standard_normal((1, 2, length, 16), np.float32)
    request = {"query": tensor, "key": tensor, "value": tensor, **fields}
    return AttentionJob.of(AttentionRequest.model_validate(request), engine)


def test_a_job_ends_at_the_next_tile(engine: Engine) -> None:
    looked = []

    def cancelled() -> bool:
        looked.append(True)
        return len(looked) > 3

    large = job(engine, 2048, is_causal=True)
    tiles = large.explain().steps[0].tiles
    assert tiles > 20
    with pytest.raises(Cancelled):
        large.run(cancelled)
    assert len(looked) < tiles
    assert large.run()["output"].shape == (1, 2, 2048, 16)


def test_nothing_of_a_call_is_held_once_it_is_answered(engine: Engine) -> None:
    large = job(engine, 600, is_causal=True)
    query = weakref.ref(large.call.query)
    large.run()
    del large
    job(engine, 300).run()  # what a helper held last goes with its next tile
    gc.collect()
    assert query() is None


class Concurrency:
    """Counts how many tiles are inside at once."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.now = self.most = 0

    def tile(self, seconds: float) -> Callable[[], None]:
        def compute() -> None:
            with self._lock:
                self.now += 1
                self.most = max(self.most, self.now)
            time.sleep(seconds)
            with self._lock:
                self.now -= 1

        return compute


def test_no_more_tiles_compute_at_once_than_there_are_lanes() -> None:
    lanes, seen = Lanes(2), Concurrency()
    calls = [Thread(target=lanes.run, args=([seen.tile(0.002)] * 20,)) for _ in range(5)]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    lanes.close()
    assert seen.most == 2


class Held:
    """Holds the only lane, so that others wait for it, until it may end."""

    def __init__(self, lanes: Lanes, tiles: int) -> None:
        self.has_begun, self._may_end = threading.Event(), threading.Event()
        self.ended = 0
        self.call = Thread(target=lanes.run, args=([self._tile] * tiles,))
        self.call.start()
        assert self.has_begun.wait(10)

    def _tile(self) -> None:
        self.has_begun.set()
        self._may_end.wait(10)
        self.ended += 1

    def end(self) -> None:
        self._may_end.set()
        self.call.join()


def test_calls_of_many_tiles_take_turns() -> None:
    lanes, order = Lanes(1), list[str]()
    held = Held(lanes, 2)

    def run(name: str) -> None:
        def tile() -> None:
            order.append(name)
            time.sleep(0.005)  # in which the other comes back to wait

        lanes.run([tile] * 10)

    calls = [Thread(target=run, args=(name,)) for name in "ab"]
    for call in calls:
        call.start()
    wait_until(lambda: len(lanes._slots._line) == 2)
    held.end()
    for call in calls:
        call.join()
    changes = sum(a != b for a, b in pairwise(order))
    assert changes >= 10, order  # without turns it is one
    lanes.close()


def test_a_call_of_one_tile_goes_before_those_of_many() -> None:
    lanes, ran = Lanes(1), list[int]()
    held = Held(lanes, 20)
    lanes.run([lambda: ran.append(0)])
    assert held.ended == 0
    held.end()
    # The slot that it took beyond the number of lanes is given back.
    lanes.run([lambda: ran.append(1), lambda: ran.append(2)])
    assert ran == [0, 1, 2]
    lanes.close()


def test_a_tile_that_fails_gives_its_slot_back() -> None:
    def fail() -> None:
        raise ZeroDivisionError

    lanes = Lanes(1)
    for tiles in ([fail], [fail, fail], [fail] * 5):
        with pytest.raises(ZeroDivisionError):
            lanes.run(tiles)
    done: list[int] = []
    lanes.run([lambda: done.append(1)] * 3)
    assert done == [1, 1, 1]
