"""Tiny calls while long ones run all the time."""

from __future__ import annotations

import asyncio
from typing import Any

import uvloop

from attention_wire import bodies
from benchmarks.load_calls import tensors
from benchmarks.load_generator import Outcome, Sender, percentile
from benchmarks.served import Served, served

_LARGE = 2
_PAUSE_SECONDS = 0.005
_WANTED = {"weights": False, "plan": True}


async def _run(service: Served, seconds: float) -> dict[str, Any]:
    large = tensors(4096, **{"return": _WANTED})
    tiny = tensors(16, 2, 16)
    sender = Sender(service.port)
    answer = await sender.ask(large)
    plan = bodies.read(bodies.SAFETENSORS, answer.body, "response").values["plan"]
    tiles = sum(step["tiles"] for step in plan["steps"])
    tile_ms = plan["predicted_ms"] * 2 / tiles  # two lanes
    await sender.ask(tiny)
    alone = [await sender.ask(tiny) for _ in range(200)]
    load = asyncio.create_task(sender.closed_loop([large], _LARGE, seconds))
    await asyncio.sleep(0.5)
    beside: list[Outcome] = []
    while not load.done():
        beside.append(await sender.ask(tiny))
        await asyncio.sleep(_PAUSE_SECONDS)
    _, outcomes = await load
    await sender.close()
    return {
        "tile_ms": tile_ms,
        "large_calls": len(outcomes),
        "tiny_calls": len(beside),
        "alone_p99_ms": 1e3 * percentile([one.seconds for one in alone], 0.99),
        "queue_p99_ms": percentile([one.phases["queue"] for one in beside], 0.99),
        "compute_p99_ms": percentile([one.phases["compute"] for one in beside], 0.99),
        "end_to_end_p50_ms": 1e3 * percentile([one.seconds for one in beside], 0.5),
        "end_to_end_p99_ms": 1e3 * percentile([one.seconds for one in beside], 0.99),
        "all_answered": all(one.status == 200 for one in [*outcomes, *beside]),
    }


def mixed(seconds: float) -> dict[str, Any]:
    """Measure, and say whether what was asked is met.

    Args:
        seconds: of the mixed load.
    """
    with served() as service:
        found = uvloop.run(_run(service, seconds))
    return found | {
        "asked": {
            "queue p99 ≤ 2 tiles": found["queue_p99_ms"] <= 2 * found["tile_ms"],
            "end to end p99 ≤ 25 ms": found["end_to_end_p99_ms"] <= 25,
            "all answered": found["all_answered"],
        }
    }
