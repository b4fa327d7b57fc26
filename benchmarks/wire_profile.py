"""Where the time of a call goes: a sampling profiler beside the service while wrk calls it.

A tiny and a large call in safetensors, and a tiny one in lists, from four callers. Of each, what
the packages and functions take themselves, in microseconds a call. ``--source`` profiles another
checkout, an older one, say:

    git worktree add build/before 6e58efc
    .venv/bin/python -m benchmarks.wire_profile before --source build/before
    .venv/bin/python -m benchmarks.wire_profile now

Each run writes its part of ``benchmarks/results/wire_profile.json``. py-spy is installed in an
environment of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from attention_service.resources import cpu_count
from benchmarks import machine
from benchmarks.environments import ROOT, environment
from benchmarks.served import served
from benchmarks.wire_calls import SHAPES, Form, forms, need_wrk, turn

CALLS = {
    "tiny": ("tiny", "safetensors"),
    "12 MB": ("big", "safetensors"),
    "lists": ("tiny", "lists"),
}
CALLERS = 4
_SAMPLES_A_SECOND = 400
_MOST_FUNCTIONS = 15
# Threads that wait for work; those that compute are in ONNX Runtime or numpy.
_WAITING = ("concurrent/futures/thread.py", "threading.py")


def main() -> None:
    arguments = _arguments()
    need_wrk()
    profiler = environment("bench-profile", Path(__file__).with_name("requirements-profile.txt"))
    folders = [str(arguments.source.resolve() / name) for name in ("service", "client", "wire")]
    os.environ["PYTHONPATH"] = os.pathsep.join(folders)
    found = {}
    with served(modules=Path("/nonexistent")) as service:
        for name, (shape, form) in CALLS.items():
            call = forms(SHAPES[shape])[form]
            turn(service.port, call, CALLERS, 2)
            rate = turn(service.port, call, CALLERS, arguments.seconds)
            stacks = _stacks(profiler, service.process.pid, service.port, call, arguments.seconds)
            found[name] = {"calls_a_second": rate, **_shares(stacks, rate, arguments.seconds)}
            print(name, json.dumps(found[name], indent=1))
    _write(arguments, found)


def _stacks(profiler: Path, process: int, port: int, call: Form, seconds: int) -> Counter[str]:
    """Samples by the frames that they were taken in."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stacks"
        words = ["record", "--duration", str(seconds), "--rate", str(_SAMPLES_A_SECOND)]
        words += ["--format", "raw", "--output", str(path), "--pid", str(process)]
        command = [str(profiler.with_name("py-spy")), *words]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
            turn(port, call, CALLERS, seconds + 2)
        stacks: Counter[str] = Counter()
        for line in path.read_text().splitlines():
            frames, _, count = line.rpartition(" ")
            stacks[frames] += int(count)
        return stacks


def _shares(stacks: Counter[str], rate: float, seconds: int) -> dict[str, Any]:
    """What packages and functions take themselves of a call, in microseconds of one thread.

    Args:
        stacks: samples by frames.
        rate: calls a second.
        seconds: that were sampled.
    """
    packages: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    for frames, count in stacks.items():
        function, _, place = frames.split(";")[-1].rpartition(" (")
        path = place.partition(":")[0]
        if path.startswith(_WAITING):
            continue
        packages[_package(path)] += count
        functions[f"{function} ({path})"] += count
    each = 1e6 / (_SAMPLES_A_SECOND * seconds * rate)
    return {
        "busy_microseconds": round(packages.total() * each, 1),
        "packages": {name: round(count * each, 1) for name, count in packages.most_common()},
        "functions": {
            name: round(count * each, 1) for name, count in functions.most_common(_MOST_FUNCTIONS)
        },
    }


def _package(path: str) -> str:
    """A package of others, or a folder of ours."""
    first, *rest = path.split("/")
    return f"{first}/{rest[0]}" if first == "attention_service" and len(rest) > 1 else first


def _write(arguments: argparse.Namespace, found: dict[str, Any]) -> None:
    path = machine.RESULTS / "wire_profile.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    revision = subprocess.run(
        ["git", "-C", str(arguments.source), "describe", "--always", "--abbrev=12"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    head = machine.header(cpu_count(), ("onnxruntime", "numpy", "uvicorn", "fastapi"), {})
    kept[arguments.name] = head | {"revision": revision, "callers": CALLERS, "calls": found}
    print(f"written to {machine.write('wire_profile', kept)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("name", help="of this part of the result")
    parser.add_argument("--source", type=Path, default=ROOT, help="a checkout (%(default)s)")
    parser.add_argument("--seconds", type=int, default=6, help="of each call's profile")
    return parser.parse_args()


if __name__ == "__main__":
    main()
