"""Admission on a real event loop: who runs, who waits, who is refused, and that nothing leaks."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from attention_service.serving.admission import Admission
from attention_wire.problems import Code, ProblemError

BUDGET = 100


def on_a_loop(scenario: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run a test's coroutine; whatever it leaves unfinished after some seconds fails it."""

    def test() -> None:
        asyncio.run(asyncio.wait_for(scenario(), 60))

    test.__name__ = scenario.__name__
    return test


class Clock:
    """Time as admission sees it, which passes when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("attention_service.serving.admission.perf_counter", clock)
    return clock


async def settle() -> None:
    """Let everything that can go on go on."""
    for _ in range(20):
        await asyncio.sleep(0)


class Calls:
    """Calls of one admission, each of which holds its place until it is let go.

    What is running is counted here, by what the calls themselves see.
    """

    def __init__(self, max_running: int = 2, max_waiting: int = 10, budget: int = BUDGET) -> None:
        self.admission = Admission(max_running, max_waiting, budget)
        self.entered: list[str] = []
        self.inside: dict[str, int] = {}
        self._doors: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(
        self, name: str, peak_bytes: int = 1, caller: str = "", *, is_small: bool = False
    ) -> asyncio.Task[None]:
        self._doors[name] = asyncio.Event()
        call = self._call(name, peak_bytes, caller, is_small)
        self._tasks[name] = asyncio.create_task(call)
        return self._tasks[name]

    async def _call(self, name: str, peak_bytes: int, caller: str, is_small: bool) -> None:
        async with self.admission.place(peak_bytes, caller, is_small=is_small):
            self.entered.append(name)
            self.inside[name] = peak_bytes
            try:
                await self._doors[name].wait()
            finally:
                del self.inside[name]

    def task(self, name: str) -> asyncio.Task[None]:
        return self._tasks[name]

    def let_go(self, name: str) -> None:
        self._doors[name].set()

    async def end(self, *names: str) -> None:
        for name in names:
            self.let_go(name)
            await self._tasks[name]
        await settle()

    async def cancel(self, name: str) -> None:
        self._tasks[name].cancel()
        with pytest.raises(asyncio.CancelledError):
            await self._tasks[name]
        await settle()

    def check_empty(self) -> None:
        """Nothing runs, nothing waits, and all of the memory and every place can be had."""
        assert (self.admission.running, self.admission.waiting) == (0, 0)
        assert not self.inside


async def whole_budget_is_free(admission: Admission) -> None:
    async with asyncio.timeout(1), admission.place(admission.budget_bytes):
        assert admission.running == 1


@on_a_loop
async def test_so_many_run_and_the_others_wait() -> None:
    calls = Calls(max_running=2)
    for name in "abcd":
        calls.start(name)
    await settle()
    assert set(calls.inside) == {"a", "b"}
    assert (calls.admission.running, calls.admission.waiting) == (2, 2)
    await calls.end("b")
    assert set(calls.inside) == {"a", "c"}
    await calls.end("a", "c", "d")
    calls.check_empty()


@on_a_loop
async def test_first_come_first_served() -> None:
    calls = Calls(max_running=1, max_waiting=50)
    names = [f"call {i}" for i in range(40)]
    for name in names:
        calls.start(name)
    await settle()
    for name in names:
        await calls.end(name)
    assert calls.entered == names
    calls.check_empty()


@on_a_loop
async def test_memory_is_shared_out_within_the_budget() -> None:
    calls = Calls(max_running=10)
    calls.start("half", 50)
    calls.start("third", 33)
    calls.start("too much now", 18)
    await settle()
    assert calls.inside == {"half": 50, "third": 33}
    await calls.end("third")
    assert calls.inside == {"half": 50, "too much now": 18}
    await calls.end("half", "too much now")
    calls.check_empty()
    await whole_budget_is_free(calls.admission)


@on_a_loop
async def test_a_small_call_does_not_overtake_a_large_one_that_waits() -> None:
    """Or a stream of small calls would keep the large one out for ever."""
    calls = Calls(max_running=10)
    calls.start("first", 60)
    calls.start("large", 80)
    calls.start("small", 1)
    await settle()
    assert calls.entered == ["first"]
    await calls.end("first")
    assert calls.entered == ["first", "large", "small"]
    await calls.end("large", "small")
    calls.check_empty()


@on_a_loop
async def test_a_call_of_the_whole_budget_runs_alone() -> None:
    calls = Calls(max_running=10)
    calls.start("all", BUDGET)
    calls.start("one", 1)
    calls.start("nothing", 0)
    await settle()
    assert calls.entered == ["all"]
    await calls.end("all", "one", "nothing")
    calls.check_empty()


@on_a_loop
async def test_one_more_than_may_wait_is_refused() -> None:
    calls = Calls(max_running=1, max_waiting=2)
    for name in "abc":
        calls.start(name)
    await settle()
    with pytest.raises(ProblemError) as refused:
        await calls.start("d")
    assert refused.value.code == Code.QUEUE_FULL
    assert refused.value.retry_after is not None
    assert refused.value.retry_after >= 1
    assert "2 calls are waiting" in refused.value.detail
    await calls.end("a")  # one that waited runs, so there is room for one again
    calls.start("e")
    await calls.end("b", "c", "e")
    assert calls.entered == ["a", "b", "c", "e"]
    calls.check_empty()


@on_a_loop
async def test_where_none_may_wait_a_second_call_is_refused() -> None:
    calls = Calls(max_running=1, max_waiting=0)
    calls.start("a")
    await settle()
    with pytest.raises(ProblemError):
        await calls.start("b")
    await calls.end("a")
    calls.start("c")
    await calls.end("c")
    calls.check_empty()


@pytest.mark.parametrize(("max_running", "waiting"), [(1, 100), (1, 200), (4, 200)])
def test_retry_after_is_about_the_time_until_the_queue_is_through(
    clock: Clock, max_running: int, waiting: int
) -> None:
    seconds = 0.05

    @on_a_loop
    async def scenario() -> None:
        calls = Calls(max_running, waiting)
        for index in range(8):  # what past calls took is all that can be known
            calls.start(f"past {index}")
            await settle()
            clock.now += seconds
            await calls.end(f"past {index}")
        names = [f"call {index}" for index in range(max_running + waiting)]
        for name in names:
            calls.start(name)
        await settle()
        with pytest.raises(ProblemError) as refused:
            await calls.start("one more")
        for name in names:
            calls.let_go(name)
        await calls.end(*names)
        through = seconds * waiting / max_running
        assert refused.value.retry_after is not None
        assert 0.5 * through <= refused.value.retry_after <= 1.5 * through + 1
        assert refused.value.retry_after == int(refused.value.retry_after)  # as its header has it

    scenario()


# --- Cancellation and failure ---------------------------------------------------------------


@pytest.mark.parametrize("cancelled", ["b", "c"])
def test_a_cancelled_waiter_frees_its_place_in_the_queue(cancelled: str) -> None:
    @on_a_loop
    async def scenario() -> None:
        calls = Calls(max_running=1, max_waiting=2)
        for name in "abc":
            calls.start(name)
        await settle()
        await calls.cancel(cancelled)
        assert calls.admission.waiting == 1
        calls.start("d")  # would be refused if the other were still counted
        others = "acd" if cancelled == "b" else "abd"
        await calls.end(*others)
        assert calls.entered == list(others)
        calls.check_empty()

    scenario()


@on_a_loop
async def test_a_cancelled_waiter_no_longer_holds_up_those_behind_it() -> None:
    calls = Calls(max_running=10)
    calls.start("first", 60)
    calls.start("large", 80)
    calls.start("small", 10)
    await settle()
    await calls.cancel("large")
    assert calls.inside == {"first": 60, "small": 10}
    await calls.end("first", "small")
    calls.check_empty()


@on_a_loop
async def test_a_cancelled_call_frees_its_place_and_its_memory() -> None:
    calls = Calls(max_running=10)
    calls.start("first", 90)
    calls.start("second", 90)
    await settle()
    await calls.cancel("first")
    assert calls.inside == {"second": 90}
    await calls.end("second")
    calls.check_empty()
    await whole_budget_is_free(calls.admission)


@pytest.mark.parametrize("order", ["cancel, end", "end, cancel", "end, grant, cancel"])
def test_a_waiter_cancelled_in_the_tick_in_which_it_is_granted(order: str) -> None:
    @on_a_loop
    async def scenario() -> None:
        calls = Calls(max_running=1)
        for name in "abc":
            calls.start(name, BUDGET)
        await settle()
        waiter = calls.task("b")
        for step in order.split(", "):
            if step == "cancel":
                waiter.cancel()
            elif step == "end":
                calls.let_go("a")
            else:
                await asyncio.sleep(0)  # a ends: the place is b's, which has not run since
                assert calls.admission.running == 1
                assert calls.entered == ["a"]
        await settle()
        assert waiter.cancelled()
        assert calls.entered == ["a", "c"]
        await calls.end("c")
        calls.check_empty()
        await whole_budget_is_free(calls.admission)

    scenario()


@on_a_loop
async def test_all_waiters_cancelled_at_once() -> None:
    calls = Calls(max_running=1, max_waiting=50)
    waiters = [calls.start(f"call {index}") for index in range(30)][1:]
    await settle()
    for waiter in waiters:
        waiter.cancel()
    await settle()
    assert calls.admission.waiting == 0
    await calls.end("call 0")
    assert calls.entered == ["call 0"]
    calls.check_empty()


@on_a_loop
async def test_an_exception_frees_the_place() -> None:
    admission = Admission(1, 0, BUDGET)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            async with admission.place(BUDGET):
                raise ZeroDivisionError
    await whole_budget_is_free(admission)


@on_a_loop
async def test_the_exception_of_the_work_reaches_its_caller_and_frees_the_place() -> None:
    admission = Admission(1, 0, BUDGET)

    def work() -> None:
        raise ProblemError(Code.OVERFLOW, "too large")

    with pytest.raises(ProblemError, match="too large"):
        async with admission.place(BUDGET):
            await admission.run(work)
    await whole_budget_is_free(admission)
    admission.close()


@on_a_loop
async def test_work_runs_in_a_thread_while_the_loop_goes_on() -> None:
    admission = Admission(1, 0, BUDGET)
    loop_was_here = threading.Event()

    def work() -> str:
        assert loop_was_here.wait(10), "the loop stood still"
        return threading.current_thread().name

    task = asyncio.create_task(admission.run(work))
    await settle()
    loop_was_here.set()
    name = await task
    assert name != threading.current_thread().name
    assert name.startswith("compute")
    admission.close()


@pytest.mark.parametrize("outcome", ["returns", "raises"])
def test_cancelled_work_keeps_its_place_until_its_thread_has_ended(outcome: str) -> None:
    """The thread goes on whatever becomes of the caller, and so does its memory."""
    complaints: list[dict[str, Any]] = []

    @on_a_loop
    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: complaints.append(what))
        admission = Admission(1, 5, BUDGET)
        began, may_end = threading.Event(), threading.Event()

        def work() -> None:
            began.set()
            assert may_end.wait(10)
            if outcome == "raises":
                raise ZeroDivisionError

        async def call() -> None:
            async with admission.place(BUDGET):
                await admission.run(work)

        first = asyncio.create_task(call())
        await asyncio.to_thread(began.wait)
        second = asyncio.create_task(whole_budget_is_free(admission))
        for _ in range(3):  # however often
            first.cancel()
            await settle()
        assert (admission.running, admission.waiting) == (1, 1)
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await first
        await second
        assert (admission.running, admission.waiting) == (0, 0)
        admission.close()

    scenario()
    gc.collect()
    assert not complaints, "an exception that nobody is left to look at"


@on_a_loop
async def test_closing_waits_for_the_work() -> None:
    admission = Admission(1, 0, BUDGET)
    ended: list[bool] = []

    def work() -> None:
        time.sleep(0.05)
        ended.append(True)

    task = asyncio.create_task(admission.run(work))
    await settle()
    admission.close()
    assert ended == [True]
    await task


# --- At random --------------------------------------------------------------------------------


class Storm:
    """Calls that come, fail and are cancelled at random, and what becomes of them."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.max_running, self.max_waiting = 3, 8
        self.admission = Admission(self.max_running, self.max_waiting, BUDGET)
        self.inside: list[int] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.ends = Counter[str]()

    async def blow(self) -> None:
        rng = self.rng
        for _ in range(rng.randrange(4)):
            peak = rng.choice([0, 1, rng.randint(1, BUDGET), BUDGET])
            call = self._call(peak, ticks=rng.randrange(6), fails=rng.random() < 0.1)
            self.tasks.append(asyncio.create_task(call))
        # No tick between, one or several: some are cancelled before they begin, while they
        # wait, as they are granted, and while they run.
        for _ in range(rng.randrange(4)):
            await asyncio.sleep(0)
        for task in rng.sample(self.tasks, min(len(self.tasks), rng.randrange(3))):
            task.cancel()
        self._count()

    async def _call(self, peak_bytes: int, *, ticks: int, fails: bool) -> None:
        async with self.admission.place(peak_bytes):
            self.inside.append(peak_bytes)
            try:
                assert len(self.inside) <= self.admission.running <= self.max_running
                assert sum(self.inside) <= BUDGET
                assert self.admission.waiting <= self.max_waiting
                for _ in range(ticks):
                    await asyncio.sleep(0)
                if fails:
                    raise ZeroDivisionError
            finally:
                self.inside.remove(peak_bytes)

    def _count(self) -> None:
        for task in [task for task in self.tasks if task.done()]:
            self.tasks.remove(task)
            if task.cancelled():
                self.ends["cancelled"] += 1
            else:
                self.ends[type(task.exception()).__name__] += 1

    async def calm(self) -> None:
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self._count()


@pytest.mark.parametrize("seed", range(3))
def test_nothing_leaks_after_a_thousand_random_cancels(seed: int) -> None:
    @on_a_loop
    async def scenario() -> None:
        storm = Storm(seed)
        while storm.ends["cancelled"] < 1000:
            await storm.blow()
        await storm.calm()
        # All of it happened, and nothing else did: no assertion failed.
        assert set(storm.ends) == {"cancelled", "NoneType", "ZeroDivisionError", "ProblemError"}
        assert min(storm.ends.values()) >= 20
        assert (storm.admission.running, storm.admission.waiting) == (0, 0)
        await whole_budget_is_free(storm.admission)
        await every_place_is_free(storm.admission, storm.max_running)

    scenario()


async def every_place_is_free(admission: Admission, max_running: int) -> None:
    everyone = asyncio.Barrier(max_running)

    async def call() -> None:
        async with admission.place(1):
            await everyone.wait()

    async with asyncio.timeout(1), asyncio.TaskGroup() as group:
        for _ in range(max_running):
            group.create_task(call())


# --- Callers, small calls, and what is held after computing ----------------------------------


@on_a_loop
async def test_callers_take_turns() -> None:
    calls = Calls(max_running=1, max_waiting=20)
    for name in ("a1", "a2", "a3", "a4", "b1", "b2", "c1"):
        calls.start(name, caller=name[0])
        await settle()
    for name in ("a1", "a2", "b1", "c1", "a3", "b2", "a4"):
        assert set(calls.inside) == {name}
        await calls.end(name)
    calls.check_empty()


@on_a_loop
async def test_one_caller_cannot_fill_the_queue() -> None:
    calls = Calls(max_running=1, max_waiting=4)
    for number in range(3):  # one runs, and half of the queue
        calls.start(f"greedy {number}", caller="greedy")
    await settle()
    with pytest.raises(ProblemError, match="2 of your calls") as refused:
        await calls.start("too many", caller="greedy")
    assert refused.value.code is Code.QUEUE_FULL
    with pytest.raises(ProblemError, match="2 of your calls"):
        calls.admission.check_room("greedy")
    calls.admission.check_room("other")
    calls.start("other", caller="other")
    await settle()
    assert calls.admission.waiting == 3
    await calls.end("greedy 0", "greedy 1")
    assert set(calls.inside) == {"other"}  # whose turn came before greedy's third
    await calls.end("other", "greedy 2")
    calls.check_empty()


@on_a_loop
async def test_small_calls_never_wait_for_large_ones() -> None:
    calls = Calls(max_running=1)
    calls.start("large", BUDGET)
    calls.start("another", BUDGET)
    await settle()
    for number in range(5):
        calls.start(f"small {number}", 10, is_small=True)
        await settle()
        assert f"small {number}" in calls.inside
        await calls.end(f"small {number}")
    assert set(calls.inside) == {"large"}
    await calls.end("large", "another")
    calls.check_empty()


@on_a_loop
async def test_small_calls_wait_for_each_other() -> None:
    calls = Calls(max_running=1)
    for name in "abc":
        calls.start(name, is_small=True)
    await settle()
    assert (set(calls.inside), calls.admission.waiting) == ({"a", "b"}, 1)
    await calls.end("b")
    assert set(calls.inside) == {"a", "c"}
    await calls.end("a", "c")
    calls.check_empty()


@on_a_loop
async def test_an_answer_on_its_way_holds_memory_but_no_place() -> None:
    admission = Admission(1, 10, BUDGET)
    async with admission.place(80) as sending:
        sending.computed(30)
        assert (admission.running, admission.used_bytes) == (0, 30)
        async with asyncio.timeout(1), admission.place(70):
            assert (admission.running, admission.used_bytes) == (1, 100)
            late = asyncio.create_task(whole_budget_is_free(admission))
            await settle()
            assert admission.waiting == 1
        assert not late.done()  # 30 bytes are still on their way
    await late
    assert (admission.running, admission.used_bytes) == (0, 0)


@on_a_loop
async def test_an_answer_never_holds_more_than_was_taken() -> None:
    admission = Admission(1, 10, BUDGET)
    async with admission.place(10) as sending:
        sending.computed(10**9)
        assert admission.used_bytes == 10
        sending.computed(5)
        sending.leave()
        sending.leave()
        assert (admission.running, admission.used_bytes) == (0, 0)
    assert (admission.running, admission.used_bytes) == (0, 0)


def test_a_queue_is_as_long_as_calls_are_short(clock: Clock) -> None:
    async def run(admission: Admission, seconds: float) -> None:
        async with admission.place(1):
            clock.now += seconds
            await asyncio.sleep(0)

    async def refused_of(seconds: float, max_wait: float) -> int:
        admission = Admission(1, 1000, BUDGET, max_wait=max_wait)
        for _ in range(10):  # the first calls show how long one takes
            await run(admission, seconds)
        calls = [asyncio.create_task(run(admission, seconds)) for _ in range(60)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        problems = [outcome for outcome in outcomes if isinstance(outcome, ProblemError)]
        assert {problem.code for problem in problems} <= {Code.QUEUE_FULL}
        return len(problems)

    @on_a_loop
    async def scenario() -> None:
        assert await refused_of(0.001, max_wait=1.0) == 0
        # Of 5 ms, 22 wait for 0.1 s: the mean is still on its way up from 0.
        assert await refused_of(0.005, max_wait=0.1) == 37
        # Of longer ones three wait in any case, and the one that finds no more than these.
        assert await refused_of(0.02, max_wait=0.001) == 55

    scenario()
