"""The service under load and faults: what was asked, and what was seen.

Prints a line for each thing asked and writes ``benchmarks/results/load.json``. Run by
``make bench-load``; benchmarks/README.md describes each part. Loads go to this machine alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from attention_service.resources import cpu_count
from benchmarks import machine
from benchmarks.load_batching import batching
from benchmarks.load_cancel import cancel
from benchmarks.load_mixed import mixed
from benchmarks.load_overload import overload
from benchmarks.load_soak import soak

# Part → what it is called with: seconds, or a number of calls.
PARTS: dict[str, tuple[Callable[[Any], dict[str, Any]], float]] = {
    "overload": (overload, 30),
    "cancel": (cancel, 500),
    "mixed": (mixed, 15),
    "batching": (batching, 1),
    "soak": (soak, 600),
}


def main() -> None:
    arguments = _arguments()
    path = machine.RESULTS / "load.json"
    report: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    head = machine.header(cpu_count(), ("onnxruntime", "numpy", "uvicorn", "fastapi"), {})
    for name in arguments.part or PARTS:
        work, default = PARTS[name]
        size = arguments.size or default
        found = work(int(size) if name == "cancel" else size)
        print(f"\n{name} ({size:g})")
        for asked, is_met in found["asked"].items():
            print(f"  {'met    ' if is_met else 'NOT MET'}  {asked}")
        figures = {name: value for name, value in found.items() if name != "asked"}
        print("  " + json.dumps(figures, ensure_ascii=False))
        report[name] = {"when": head, **found}
    if not arguments.dry_run:
        print(f"written to {machine.write('load', report)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="*", choices=[[], *PARTS], help="parts; by default all")
    parser.add_argument("--size", type=float, help="seconds, or calls of `cancel`")
    parser.add_argument("--dry-run", action="store_true", help="write no results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
