"""What the plans predict, what was seen, and both as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from attention_service.attention.engine import Engine
from attention_service.attention.sdpa import AttentionJob
from benchmarks.kernel_cases import Case, Side

Times = Mapping[tuple[str, Side], Sequence[float]]


def prediction(job: AttentionJob) -> dict[str, Any]:
    """Counted before anything is timed: operations, bytes and what they take."""
    info = job.explain()
    return {
        "flops": info.flops,
        "bytes": info.bytes,
        "predicted_ms": info.predicted_ms,
        "plan": [f"{step.kernel} {step.tile_shape} × {step.tiles}" for step in info.steps],
    }


def speed(engine: Engine) -> dict[str, Any]:
    """What one lane of this machine was measured to do."""
    measured = engine.speed()
    return {
        "lanes": engine.threads,
        "lane_gflops": round(measured.flops / 1e9, 1),
        "lane_gbytes_per_second": round(measured.bytes / 1e9, 1),
        "run_microseconds": round(measured.run_seconds * 1e6, 1),
    }


def result(
    case: Case, times: Times, errors: Mapping[str, float], job: AttentionJob
) -> dict[str, Any]:
    """One case: times, the ratio of each round, and whether it is what is asked."""
    mine, base = times[case.work, case.side], times[case.base, case.base_side]
    ratios = [a / b for a, b in zip(mine, base, strict=True)]
    seen, info = median(ratios), prediction(job)
    return {
        "case": case.name,
        "decides": case.limit is not None,
        "asked": case.limit,
        "seen": round(seen, 3),
        "met": None if case.limit is None else seen <= case.limit,
        "ratios": [round(ratio, 3) for ratio in ratios],
        "ms": round(median(mine), 3),
        "base_ms": round(median(base), 3),
        "fastest_ms": round(min(mine), 3),
        "base_fastest_ms": round(min(base), 3),
        "gflops": round(info["flops"] / median(mine) / 1e6, 1),
        "largest_difference": errors.get(case.work) if case.base_side == "torch" else None,
        "predicted_ms": info["predicted_ms"],
        "plan": info["plan"],
    }


def print_predictions(predicted: Mapping[str, Mapping[str, Any]], engine: Engine) -> None:
    """The table of what was counted before the first turn."""
    lane = speed(engine)
    print(
        f"predicted, at {lane['lane_gflops']} GFLOP/s and {lane['lane_gbytes_per_second']} GB/s "
        f"of each of {lane['lanes']} lanes"
    )
    print(f"{'work':34}{'GFLOP':>9}{'MB':>10}{'ms':>10}  kernel [heads, rows, keys] × tiles")
    for name, found in predicted.items():
        print(
            f"{name:34}{found['flops'] / 1e9:9.3f}{found['bytes'] / 1e6:10.1f}"
            f"{found['predicted_ms']:10.3f}  {', '.join(found['plan'])}"
        )
    print()


def print_results(results: Sequence[Mapping[str, Any]]) -> None:
    """The table of what was asked and seen."""
    print(
        f"\n{'case':60}{'asked':>7}{'seen':>7} {'least to most':>15}{'met':>5}"
        f"{'ms':>10}{'base ms':>10}{'predicted':>11}{'difference':>12}"
    )
    for found in results:
        asked = "" if found["asked"] is None else f"{found['asked']:.2f}"
        met = {True: "yes", False: "NO", None: ""}[found["met"]]
        span = f"{min(found['ratios']):.2f} to {max(found['ratios']):.2f}"
        difference = found["largest_difference"]
        print(
            f"{found['case']:60}{asked:>7}{found['seen']:7.2f} {span:>15}{met:>5}"
            f"{found['ms']:10.3f}{found['base_ms']:10.3f}{found['predicted_ms']:11.3f}"
            f"{'' if difference is None else f'{difference:.0e}':>12}"
        )
    asked_for = [found for found in results if found["decides"]]
    met_count = sum(bool(found["met"]) for found in asked_for)
    print(f"\n{met_count} of {len(asked_for)} met; lines without a limit are for information")
