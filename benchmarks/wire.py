"""The whole service against a bare ASGI app that parses the same bytes and runs the same session.

Both are up for the whole run and take turns under wrk, which is no bottleneck. Prints a table
and writes ``benchmarks/results/wire.json``. Run by ``make bench-wire``.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from attention_service.resources import cpu_count
from attention_wire import bodies
from benchmarks import machine
from benchmarks.served import free_port, served

SHAPES = {"tiny": (1, 2, 16, 16), "mid": (1, 8, 128, 64), "big": (1, 8, 512, 64)}
_ASKED = {"tiny": 0.6}
_SCRIPT = """
local file = io.open(os.getenv("BODY"), "rb")
wrk.method, wrk.body = "POST", file:read("*a")
wrk.headers["Content-Type"] = "application/x-safetensors"
"""


@contextmanager
def _floor() -> Iterator[int]:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.wire_floor", str(port)])
    try:
        while process.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5)
                break
            except urllib.error.URLError:
                time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def _turn(port: int, body: Path, script: Path, callers: int, seconds: float) -> float:
    """Answers a second."""
    words = ["wrk", "-t1", f"-c{callers}", f"-d{seconds}s", "-s", str(script)]
    done = subprocess.run(
        [*words, f"http://127.0.0.1:{port}/v1/attention"],
        env=os.environ | {"BODY": str(body)},
        capture_output=True,
        text=True,
        check=True,
    )
    rate = re.search(r"Requests/sec: +([\d.]+)", done.stdout)
    if rate is None or "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        raise RuntimeError(done.stdout)
    return float(rate[1])


def main() -> None:
    arguments = _arguments()
    if shutil.which("wrk") is None:
        sys.exit("wrk is missing: on Debian and Ubuntu, apt-get install wrk")
    head = machine.header(cpu_count(), ("onnxruntime", "numpy", "uvicorn", "fastapi"), {})
    rows: list[dict[str, Any]] = []
    nowhere = Path("/nonexistent")
    with (
        tempfile.TemporaryDirectory() as folder,
        _floor() as floor,
        served(modules=nowhere) as service,
        served(modules=nowhere, log_level="warning") as quiet,
    ):
        script = Path(folder) / "post.lua"
        script.write_text(_SCRIPT)
        ports = {"floor": floor, "service": service.port, "service, no access log": quiet.port}
        for name, shape in SHAPES.items():
            body = Path(folder) / name
            rng = np.random.default_rng(0)
            fields = {n: rng.standard_normal(shape, np.float32) for n in ("query", "key", "value")}
            body.write_bytes(bytes(bodies.write(bodies.SAFETENSORS, fields, "request")))
            for callers in (1, 4):
                rounds = [
                    {who: _turn(port, body, script, callers, arguments.seconds)
                     for who, port in ports.items()}
                    for _ in range(arguments.rounds + 1)
                ][1:]  # fmt: skip
                rows.append(_row(name, callers, rounds))
                print(rows[-1])
    report = head | {"rows": rows, "rounds": arguments.rounds, "seconds": arguments.seconds}
    if not arguments.dry_run:
        print(f"written to {machine.write('wire', report)}")


def _row(name: str, callers: int, rounds: list[dict[str, float]]) -> dict[str, Any]:
    """The middle of the rounds' ratios to the floor."""
    others = [who for who in rounds[0] if who != "floor"]
    ratios = {who: [one[who] / one["floor"] for one in rounds] for who in others}
    middle = {who: round(statistics.median(each), 3) for who, each in ratios.items()}
    row: dict[str, Any] = {
        "shape": name,
        "callers": callers,
        "floor_a_second": round(statistics.median(one["floor"] for one in rounds)),
        "of_the_floor": middle,
        "least_and_most": {
            who: [round(min(each), 3), round(max(each), 3)] for who, each in ratios.items()
        },
    }
    if callers == 4 and name in _ASKED:
        row["met"] = middle["service"] >= _ASKED[name]
    return row


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=2, help="of each turn")
    parser.add_argument("--dry-run", action="store_true", help="write no results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
