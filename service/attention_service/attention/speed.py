"""How fast this machine computes tiles, measured; and what a plan will take by that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TypeVar

import numpy as np

from attention_service.attention.kernels import Target
from attention_service.attention.planner import Plan
from attention_wire.answers import PlanInfo, PlanStep

Gave = TypeVar("Gave")
_REPEATS = 5
_COPIED_BYTES = 2**24


@dataclass(frozen=True, slots=True)
class Speed:
    """What one lane does.

    Attributes:
        flops: floating-point operations a second, in tiles of the composed kernel.
        bytes: bytes a second that are moved.
        run_seconds: what running a graph takes beside its work.
    """

    flops: float
    bytes: float
    run_seconds: float

    def seconds(self, plan: Plan, target: Target) -> float:
        """What a plan takes: the longer of computing and moving, shared among the lanes."""
        total = 0.0
        for cost in plan.costs:
            lanes = max(1, min(target.lanes, cost.tiles))
            work = max(cost.flops / self.flops, cost.bytes / self.bytes)
            total += (work + cost.tiles * self.run_seconds) / lanes
        return total


def measure(run_tile: Callable[[int, int], float]) -> Speed:
    """Measure one lane.

    Args:
        run_tile: runs a tile of so many rows and keys, and gives its operations.
    """
    tiny = _fastest(lambda: run_tile(1, 1))[0]
    seconds, flops = _fastest(lambda: run_tile(128, 1024))
    source = np.ones(_COPIED_BYTES, np.uint8)
    copied = np.empty_like(source)
    copy_seconds = _fastest(partial(np.copyto, copied, source))[0]
    return Speed(flops / max(seconds - tiny, 1e-9), 2 * _COPIED_BYTES / copy_seconds, tiny)


def _fastest(work: Callable[[], Gave]) -> tuple[float, Gave]:
    """The fewest seconds that some work took, and what it gave."""
    gave = work()
    fewest = np.inf
    for _ in range(_REPEATS):
        start = perf_counter()
        gave = work()
        fewest = min(fewest, perf_counter() - start)
    return float(fewest), gave


def describe(plan: Plan, target: Target, dtype: str, speed: Speed) -> PlanInfo:
    """A plan as it is told to callers."""
    steps = [
        PlanStep(
            kernel=step.kernel,
            computes=sorted(step.outputs),
            dtype=dtype,
            tiles=cost.tiles,
            tile_shape=[step.tile_heads, step.tile_rows, cost.keys],
            flops=cost.flops,
            bytes=cost.bytes,
        )
        for step, cost in zip(plan.steps, plan.costs, strict=True)
    ]
    return PlanInfo(
        steps=steps,
        lanes=target.lanes,
        flops=sum(cost.flops for cost in plan.costs),
        bytes=sum(cost.bytes for cost in plan.costs),
        predicted_ms=round(speed.seconds(plan, target) * 1e3, 3),
        peak_bytes=plan.peak_bytes,
    )
