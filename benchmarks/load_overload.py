"""Overload: four times what can be sustained, and what becomes of the calls."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import uvloop

from attention_client import AsyncAttentionClient
from benchmarks.load_calls import text
from benchmarks.load_generator import Outcome, Sender, percentile, probe
from benchmarks.served import Served, served

TEXT = "the quick brown fox jumps over the lazy dog and runs away into the dark wood again"
# Of an operator who would rather refuse a call than let it wait: a short queue, one batch at once.
SETTINGS = {"max_wait": 0.02, "max_running": 1}
_FIELDS = {"return": {"weights": False}}
CONTENT = text(TEXT, **_FIELDS)
_CALLERS = 4
# What the other processes take to begin.
_START_SECONDS = 2.0
_PATIENT = 4


async def _probe(port: int, seconds: float) -> list[float]:
    """Seconds that each `/healthz` took."""
    sender, times, end = Sender(port), [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        times.append((await sender.ask(probe("/healthz"))).seconds)
        await asyncio.sleep(0.05)
    await sender.close()
    return times


async def _patient(url: str, seconds: float) -> int:
    """Real clients with three minutes' patience: how many of their calls succeeded; all must."""
    end = time.perf_counter() + seconds

    async def calls(client: AsyncAttentionClient) -> int:
        count = 0
        while time.perf_counter() < end:
            result = await client.text_attention(TEXT, return_={"weights": False})
            count += len(result.output) > 0
        return count

    async with AsyncAttentionClient(url, timeout=180) as client:
        return sum(await asyncio.gather(*(calls(client) for _ in range(_PATIENT))))


def _aside(what: str, where: Any, seconds: float) -> Any:
    """Probes or patient clients, in a process of their own: they must not wait for the load."""
    work = {"probe": _probe, "patient": _patient}[what]
    return asyncio.run(work(where, seconds))


async def _run(service: Served, seconds: float) -> dict[str, Any]:
    sender = Sender(service.port)
    await sender.closed_loop([CONTENT], _CALLERS, min(2.0, seconds))
    _, outcomes = await sender.closed_loop([CONTENT], _CALLERS, seconds / 3)
    most = sum(one.status == 200 for one in outcomes) / (seconds / 3)
    sustained = await sender.open_loop(CONTENT, 0.7 * most, seconds / 2)
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(2, get_context("spawn")) as aside:
        probes = loop.run_in_executor(aside, _aside, "probe", service.port, seconds)
        patient = loop.run_in_executor(aside, _aside, "patient", service.url, seconds)
        await asyncio.sleep(_START_SECONDS)
        start = time.perf_counter()
        overload = await sender.open_loop(CONTENT, 4 * 0.7 * most, seconds)
        lasted = time.perf_counter() - start
        resident = service.resident_bytes()
        probed, done = await probes, await patient
    await sender.close()
    return {
        "most_a_second": most,
        "sustained_p99_ms": _p99(sustained),
        "sustained_statuses": dict(Counter(outcome.status for outcome in sustained)),
        "overload_p99_ms": _p99(overload),
        "overload_statuses": dict(Counter(outcome.status for outcome in overload)),
        "overload_seconds": lasted,
        "refused_without_retry_after": sum(
            outcome.status == 429 and not outcome.retry_after for outcome in overload
        ),
        "healthz_p99_ms": 1e3 * percentile(probed, 0.99),
        "patient_calls": done,
        "resident_mb": resident / 1e6,
        "budget_mb": json.loads(service.get("/v1/info"))["limits"]["memory_bytes"] / 1e6,
    }


def _p99(outcomes: list[Outcome]) -> float:
    return 1e3 * percentile([one.seconds for one in outcomes if one.status == 200], 0.99)


def overload(seconds: float) -> dict[str, Any]:
    """Measure, and say whether what was asked is met.

    Args:
        seconds: of the overload.
    """
    with served(**SETTINGS) as service:
        found = uvloop.run(_run(service, seconds))
    statuses = set(found["overload_statuses"]) - {200, 429}
    return found | {
        "settings": SETTINGS,
        "asked": {
            "admitted p99 ≤ 3 × sustained": found["overload_p99_ms"]
            <= 3 * found["sustained_p99_ms"],
            "all others 429 with Retry-After": not statuses
            and not found["refused_without_retry_after"],
            "healthz p99 ≤ 50 ms": found["healthz_p99_ms"] <= 50,
            "patient clients all succeed": found["patient_calls"] > 0,
            "memory within the budget": found["resident_mb"] <= found["budget_mb"],
        },
    }
