"""The whole service against other servers of models, around the same ONNX session.

KServe, LitServe, BentoML and Triton (through PyTriton), each in an environment of its own that is
built here, in its best form: binary where it has one. One server is up at a time; a round starts
each of them in turn, warms it up and measures it under wrk, with one caller and with four. A bare
ASGI app takes its turn too, and says how far one could go. Prints a table and writes
``benchmarks/results/wire_peers.json``. Run by ``make bench-wire``.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from attention_service.attention.graphs import TileSpec, build
from attention_service.resources import cpu_count
from benchmarks import machine
from benchmarks.environments import ROOT, environment
from benchmarks.served import free_port, served, server_of
from benchmarks.wire_calls import SHAPES, Form, forms, need_wrk, turn

CALLERS = (1, 4)
_START_SECONDS = 90.0
_PYTHON = {"pytriton": "/usr/bin/python3.11"}  # its server is linked with Debian's


class Peer(NamedTuple):
    """A server beside us.

    Attributes:
        package: what it is installed as.
        form: of its calls.
        asked: the least ratio of our answers a second to its, by shape.
    """

    package: str
    form: str
    asked: dict[str, float]


_OF_PYTHON = {"tiny": 6.0, "mid": 7.0, "big": 4.0}
PEERS = {
    "kserve": Peer("kserve", "inference", _OF_PYTHON),
    "litserve": Peer("litserve", "numbers", _OF_PYTHON),
    "bentoml": Peer("bentoml", "numbers", _OF_PYTHON),
    "pytriton": Peer("nvidia-pytriton", "inference", {"tiny": 7.0, "mid": 2.2, "big": 1.3}),
}
Rates = dict[tuple[str, int], float]


@contextmanager
def _running(python: Path, name: str, model: Path) -> Iterator[int]:
    """A peer, up, on a free port; it ends with all that it has started."""
    port = free_port()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [str(python), "-m", f"benchmarks.peers.{name}_server", str(port), str(model)],
            cwd=ROOT, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            _wait(process, port, forms(SHAPES["tiny"])[PEERS[name].form])
            yield port
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(process.pid, number)
                    process.wait(10)
                except ProcessLookupError:
                    break
                except subprocess.TimeoutExpired:
                    continue


def _wait(process: subprocess.Popen[bytes], port: int, form: Form) -> None:
    """Until it answers a call."""
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            turn(port, form, 1, 1)
        except RuntimeError:
            time.sleep(0.5)
        else:
            return
    raise RuntimeError("it does not answer")


def _rates(port: int, form: str, seconds: float) -> Rates:
    """Answers a second, by shape and number of callers."""
    rates = {}
    for shape, sizes in SHAPES.items():
        call = forms(sizes)[form]
        # Some take a large call seconds.
        each = 3 * seconds if shape == "big" else seconds
        turn(port, call, CALLERS[-1], 1)
        for callers in CALLERS:
            rates[shape, callers] = turn(port, call, callers, each)
    return rates


def main() -> None:
    arguments = _arguments()
    need_wrk()
    head = machine.header(cpu_count(), ("onnxruntime", "numpy", "uvicorn", "fastapi"), {})
    pythons = {
        name: python for name in arguments.peers if (python := _environment(name)) is not None
    }
    seen: dict[str, list[Rates]] = {name: [] for name in ("service", "floor", *pythons)}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "attention.onnx"
        spec = TileSpec("float32", ("output", "weights"))
        model.write_bytes(build(spec).SerializeToString())
        for number in range(1, arguments.rounds + 1):
            with served(modules=Path("/nonexistent")) as service:
                seen["service"].append(_rates(service.port, "safetensors", arguments.seconds))
            with server_of("wire_floor") as floor:
                seen["floor"].append(_rates(floor, "safetensors", arguments.seconds))
            for name, python in pythons.items():
                with _running(python, name, model) as port:
                    seen[name].append(_rates(port, PEERS[name].form, arguments.seconds))
            print(f"round {number} of {arguments.rounds}", file=sys.stderr, flush=True)
    rows = [row for name in pythons for row in _rows(name, seen)]
    report = head | {
        "floor_a_second": _middles(seen["floor"]),
        "peers": {name: _versions(python) for name, python in pythons.items()},
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "service_a_second": _middles(seen["service"]),
        "rows": rows,
    }
    if not arguments.dry_run:
        print(f"written to {machine.write('wire_peers', report)}")


def _environment(name: str) -> Path | None:
    """Its Python, or None, and why, where it cannot be installed."""
    requirements = Path(__file__).parent / "peers" / f"requirements-{name}.txt"
    try:
        return environment(f"bench-{name}", requirements, _PYTHON.get(name, sys.executable))
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        print(f"{name} is left out: {error}", file=sys.stderr)
        return None


def _versions(python: Path) -> dict[str, str]:
    """Of what counts in a peer's environment."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "freeze"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    packages = {peer.package for peer in PEERS.values()} | {"onnxruntime", "numpy", "uvicorn"}
    pairs = (line.split("==") for line in lines if "==" in line)
    return {name: given for name, given in pairs if name in packages}


def _middles(rounds: list[Rates]) -> dict[str, float]:
    return {
        f"{shape}, {callers}": round(statistics.median(one[shape, callers] for one in rounds), 1)
        for shape, callers in rounds[0]
    }


def _rows(name: str, seen: dict[str, list[Rates]]) -> Iterator[dict[str, Any]]:
    """The middle of the rounds' ratios to a peer, by shape and number of callers."""
    theirs = seen[name]
    for shape, callers in theirs[0]:

        def ratios_of(who: str, at: tuple[str, int] = (shape, callers)) -> list[float]:
            return [mine[at] / other[at] for mine, other in zip(seen[who], theirs, strict=True)]

        ratios, floor = ratios_of("service"), statistics.median(ratios_of("floor"))
        asked, middle = PEERS[name].asked[shape], statistics.median(ratios)
        row = {
            "peer": name,
            "shape": shape,
            "callers": callers,
            "a_second": round(statistics.median(one[shape, callers] for one in theirs), 1),
            "ratio": round(middle, 2),
            "least_and_most": [round(min(ratios), 2), round(max(ratios), 2)],
            "floor_ratio": round(floor, 2),
            "asked": asked,
            "met": middle >= asked,
        }
        print(row)
        yield row


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peers", nargs="*", default=list(PEERS), help="all by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=2, help="of each turn")
    parser.add_argument("--dry-run", action="store_true", help="write no results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
