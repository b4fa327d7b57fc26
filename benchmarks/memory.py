"""How far calls raise resident memory, and how well that was predicted.

Each call runs in a process of its own; benchmarks/README.md describes the method. Prints
tables and writes ``benchmarks/results/memory.json``. Run by ``make bench-memory``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from attention_service.resources import cpu_count
from benchmarks import machine
from benchmarks.memory_calls import LONG, SMALL, VARIED

PARTS = ("long", "varied", "small", "soak")
SOAK_CALLS = 2000
_WITHIN = 0.25
_SMALL_MB = 5.0
_TOP_8_TIMES = 3.0
_SOAK_GROWTH = 1.1


def main() -> None:
    arguments = _arguments()
    head = machine.header(cpu_count(), ("onnxruntime", "onnx", "numpy"), {})
    parts = arguments.part or PARTS
    report: dict[str, Any] = head | {"method": _METHOD}
    if "long" in parts:
        report["long"] = list(_long(arguments.cases))
    if "varied" in parts:
        report["varied"] = list(_varied(arguments.cases))
    if "small" in parts:
        report["small"] = list(_small(arguments.cases))
    if "soak" in parts:
        report["soak"] = _soak()
    checks = [row for part in PARTS for row in _rows(report.get(part, []))]
    print(f"\n{sum(row['met'] for row in checks)} of {len(checks)} met")
    if not arguments.dry_run:
        print(f"written to {machine.write('memory', report)}")


_METHOD = {
    "process": "one for each call; the soak is one process",
    "baseline": "resident once the inputs exist and a small call of the same kind has run, after "
    "malloc_trim",
    "peak": "the larger of VmHWM, set back before the call, and of samples every 3 ms",
    "soak": "resident two seconds after a call, when memory kept for the next one is given back",
    "left": "resident above the baseline after the answer is dropped and malloc_trim",
}


def _long(words: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The calls over 32,768 keys: growth, and the time of top-8 against the output alone."""
    print(f"\n{'L = S = 32,768, 8 heads':44}{'asked MB':>10}{'seen':>10}{'predicted':>10}{'s':>8}")
    seconds = {}
    for name in _chosen(LONG, words):
        found, limit = _measure("LONG", name), LONG[name][1]
        seconds[name] = found["seconds"]
        met = found["measured_mb"] < limit
        print(
            f"{name:44}{limit:10}{found['measured_mb']:10.1f}{found['predicted_mb']:10.1f}"
            f"{found['seconds']:8.1f}{_word(met)}"
        )
        yield {"call": name, "asked_mb": limit, **found, "met": met}
    alone, top_8 = "output alone", "output, top-8 of all heads"
    if alone in seconds and top_8 in seconds:
        seen = seconds[top_8] / seconds[alone]
        met = seen <= _TOP_8_TIMES
        print(
            f"{'time of top-8 / output alone':44}{_TOP_8_TIMES:10}{seen:10.2f}{'':18}{_word(met)}"
        )
        name = "time of top-8 / output alone"
        yield {"call": name, "asked": _TOP_8_TIMES, "seen": round(seen, 3), "met": met}


def _varied(words: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Calls of every option: predicted against measured."""
    print(f"\n{'varied calls, MB':56}{'predicted':>10}{'seen':>10}{'ratio':>8}")
    for name in _chosen(VARIED, words):
        found = _measure("VARIED", name)
        ratio = found["predicted_mb"] / max(found["measured_mb"], 0.01)
        met = 1 - _WITHIN <= ratio <= 1 + _WITHIN
        print(
            f"{name:56}{found['predicted_mb']:10.1f}{found['measured_mb']:10.1f}{ratio:8.2f}"
            f"{_word(met)}"
        )
        yield {"call": name, **found, "predicted_by_measured": round(ratio, 3), "met": met}


def _small(words: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Calls of a few megabytes, where the difference counts."""
    print(f"\n{'small calls, MB':56}{'predicted':>10}{'seen':>10}{'more':>8}")
    for name in _chosen(SMALL, words):
        found = _measure("SMALL", name)
        more = found["predicted_mb"] - found["measured_mb"]
        met = abs(more) <= _SMALL_MB
        print(
            f"{name:56}{found['predicted_mb']:10.2f}{found['measured_mb']:10.2f}{more:8.2f}"
            f"{_word(met)}"
        )
        yield {"call": name, **found, "met": met}


def _soak() -> dict[str, Any]:
    print(f"\n{SOAK_CALLS} calls of mixed sizes")
    found = _run("benchmarks.memory_soak", str(SOAK_CALLS), show=True)
    met = 1 / _SOAK_GROWTH <= found["seen"] <= _SOAK_GROWTH
    print(
        f"resident at the end / after the first 200: asked within 10%, seen {found['seen']:.3f}"
        f"{_word(met)} ({found['seconds']:.0f} s)"
    )
    return {**found, "asked": _SOAK_GROWTH, "met": met}


def _measure(group: str, name: str) -> dict[str, Any]:
    return _run("benchmarks.memory_case", group, name)


def _run(module: str, *arguments: str, show: bool = False) -> dict[str, Any]:
    """What a module of ours prints in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.PIPE,
        stderr=None if show else subprocess.PIPE,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    if done.returncode:
        raise SystemExit(f"{module} {arguments} ended with {done.returncode}\n{done.stderr or ''}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _chosen(calls: dict[str, Any], words: Sequence[str]) -> list[str]:
    return [name for name in calls if not words or any(word in name for word in words)]


def _rows(part: dict[str, Any] | list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [part] if isinstance(part, dict) else part


def _word(met: bool) -> str:
    return "  yes" if met else "   NO"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("cases", nargs="*", help="parts of names of calls; all by default")
    parser.add_argument("--part", action="append", choices=PARTS, help="all by default")
    parser.add_argument("--dry-run", action="store_true", help="write no results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
