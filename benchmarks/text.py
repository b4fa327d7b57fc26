"""Text attention against transformers: runs, a whole call, and a text that it has no memory for.

benchmarks/README.md describes the method. Prints tables and writes
``benchmarks/results/text.json``. Run by ``make bench-text``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from attention_service.heap import give_back_freed
from attention_service.resources import cpu_count
from benchmarks import machine, text_http, text_long, text_run
from benchmarks.text_cases import FOLDERS, PYTHON

PARTS = ("run", "http", "long")
_PACKAGES = ("onnxruntime", "onnx", "numpy", "tokenizers", "uvicorn", "fastapi", "orjson")
_THEIR_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "fastapi", "uvicorn", "pydantic")


def main() -> None:
    arguments = _arguments()
    for path in (arguments.python, *FOLDERS.values()):
        if not path.exists():
            sys.exit(f"{path} is missing: `make bench-text` makes it")
    give_back_freed()  # as the service does when it starts
    parts = arguments.part or PARTS
    report: dict[str, Any] = machine.header(
        arguments.threads, _PACKAGES, _their_versions(arguments.python)
    )
    rows: list[dict[str, Any]] = []
    if "run" in parts:
        found, about = text_run.measure(arguments)
        text_run.print_rows(found)
        report |= {"transformers": about, "run": {"method": text_run.METHOD, "rows": found}}
        rows += found
    if "http" in parts:
        found = text_http.measure(arguments)
        text_http.print_rows(found)
        report["http"] = {"method": text_http.METHOD, "rows": found}
        rows += found
    if "long" in parts:
        row = text_long.measure(arguments)
        text_long.print_row(row)
        report["long"] = {"method": text_long.METHOD, **row}
        rows.append(row)
    report |= {
        "load_after": [round(load, 2) for load in os.getloadavg()],
        "rounds": arguments.rounds,
        "pause_seconds": arguments.pause,
    }
    print(f"\n{sum(row['met'] for row in rows)} of {len(rows)} met")
    if not arguments.dry_run:
        print(f"written to {machine.write('text', report)}")


def _their_versions(python: Path) -> dict[str, str]:
    """What is installed in the other environment, by names of their own."""
    code = (
        "import json, sys; from importlib.metadata import version; "
        "print(json.dumps({n: version(n) for n in sys.argv[1:]}))"
    )
    done = subprocess.run(
        [str(python), "-c", code, *_THEIR_PACKAGES], stdout=subprocess.PIPE, check=True, text=True
    )
    found: dict[str, str] = json.loads(done.stdout)
    return {f"their {name}": number for name, number in found.items()}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--part", action="append", choices=PARTS, help="all by default")
    parser.add_argument("--rounds", type=int, default=9, help="that count (%(default)s)")
    parser.add_argument("--pause", type=float, default=0.2, help="seconds between turns")
    parser.add_argument("--threads", type=int, default=cpu_count(), help="of each side")
    parser.add_argument(
        "--tokens", type=int, default=text_long.TOKENS, help="of the long text (%(default)s)"
    )
    parser.add_argument("--python", type=Path, default=PYTHON, help="that has transformers")
    parser.add_argument("--dry-run", action="store_true", help="write no results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
