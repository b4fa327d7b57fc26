"""Work that is given up at some time: it takes a timer only where it waits."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest

from attention_service.serving.lifetime import until


async def steps(count: int, seen: list[str]) -> int:
    """Work that waits so many times, and says how it went on."""
    try:
        for _ in range(count):
            await asyncio.sleep(0.001)
            seen.append("waited")
    except asyncio.CancelledError:
        seen.append("cancelled")
        raise
    return count


def test_work_that_never_waits_takes_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(asyncio, "timeout", lambda _: pytest.fail("a timer"))
        # It is over sooner than it could be given up.
        assert await until(monotonic() - 1, steps(0, [])) == 0

    asyncio.run(scenario())


def test_work_that_waits_goes_on_to_its_result() -> None:
    async def scenario() -> None:
        seen: list[str] = []
        assert await until(monotonic() + 60, steps(3, seen)) == 3
        assert seen == ["waited"] * 3

    asyncio.run(scenario())


@pytest.mark.parametrize("seconds", [-1.0, 0.02])
def test_work_that_waits_too_long_is_given_up(seconds: float) -> None:
    async def scenario() -> None:
        seen: list[str] = []
        with pytest.raises(TimeoutError):
            await until(monotonic() + seconds, steps(60_000, seen))
        assert seen[-1] == "cancelled"
        task = asyncio.current_task()
        assert task is not None
        assert not task.cancelling()

    asyncio.run(scenario())


@pytest.mark.parametrize("waits", [0, 2])
def test_what_work_raises_is_raised(waits: int) -> None:
    async def work() -> None:
        await steps(waits, [])
        raise KeyError(waits)

    async def scenario() -> None:
        with pytest.raises(KeyError):
            await until(monotonic() + 60, work())

    asyncio.run(scenario())


def test_whoever_cancels_the_task_cancels_the_work() -> None:
    async def scenario() -> None:
        seen: list[str] = []
        task = asyncio.create_task(until(monotonic() + 60, steps(60_000, seen)))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert seen[-1] == "cancelled"

    asyncio.run(scenario())


def test_work_may_go_on_after_it_was_cancelled() -> None:
    async def stubborn() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
        return "done"

    async def scenario() -> None:
        task = asyncio.create_task(until(monotonic() + 60, stubborn()))
        await asyncio.sleep(0)
        task.cancel()
        assert await task == "done"

    asyncio.run(scenario())
