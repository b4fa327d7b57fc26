"""Callers who hang up: how soon their place is free, and that nothing is left of them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from benchmarks.load_calls import tensors
from benchmarks.load_generator import Sender, end, percentile
from benchmarks.served import Served, served

_RETURN = {"output": False, "weights": False, "entropy": True}
_TIMED = 20


async def _hang_up(service: Served, content: bytes, seconds: float) -> None:
    """Send a call, and close the connection after a while."""
    _, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(content)
    await writer.drain()
    await asyncio.sleep(seconds)
    await end(writer)


async def _running(service: Served) -> float:
    metrics = await asyncio.to_thread(service.metrics)
    return metrics["attention_running"] + metrics["attention_queue_size"]


async def _freed_after(service: Served, content: bytes) -> float:
    """Milliseconds from hanging up until the place is free."""
    call = asyncio.create_task(_hang_up(service, content, 0.5))
    while not await _running(service):  # noqa: ASYNC110  only the service knows
        await asyncio.sleep(0.005)
    await call
    start = time.perf_counter()
    await _until_idle(service)
    return 1e3 * (time.perf_counter() - start)


async def _hang_up_on(service: Served, content: bytes, calls: int) -> None:
    """Hang up on calls: some end while they wait, some while they compute, or their body comes."""
    pauses = (0.0, 0.02, 0.1)
    for number in range(calls // 5):
        ends = (_hang_up(service, content, pauses[(number + of) % 3]) for of in range(5))
        await asyncio.gather(*ends)
    await _until_idle(service)
    await asyncio.sleep(1)


async def _until_idle(service: Served) -> None:
    while await _running(service):  # noqa: ASYNC110  only the service knows
        await asyncio.sleep(0.002)


async def _run(service: Served, calls: int) -> dict[str, Any]:
    content = tensors(8192, **{"return": _RETURN})
    freed = [await _freed_after(service, content) for _ in range(_TIMED)]
    await _hang_up_on(service, content, calls // 10)
    before = service.resident_bytes()
    await _hang_up_on(service, content, calls)
    after = service.resident_bytes()
    sender = Sender(service.port)
    answer = await sender.ask(tensors(16, 2, 16))
    await sender.close()
    metrics = service.metrics()
    return {
        "freed_ms_median": percentile(freed, 0.5),
        "freed_ms_most": max(freed),
        "calls": calls,
        "growth_mb": (after - before) / 1e6,
        "left_in_the_queue": metrics["attention_queue_size"],
        "left_running": metrics["attention_running"],
        "held_bytes": metrics["attention_memory_predicted_bytes"],
        "serves_on": answer.status == 200,
    }


def cancel(calls: int) -> dict[str, Any]:
    """Measure, and say whether what was asked is met.

    Args:
        calls: that are hung up on, after those whose place is timed.
    """
    with served() as service:
        found = asyncio.run(_run(service, calls))
    left = found["left_in_the_queue"] + found["left_running"] + found["held_bytes"]
    return found | {
        "asked": {
            "place free in < 250 ms": found["freed_ms_most"] < 250,
            "no growth (≤ 20 MB)": found["growth_mb"] <= 20,
            "nothing left": left == 0 and found["serves_on"],
        }
    }
