"""The whole service against a bare ASGI app that parses the same bytes and runs the same session.

In both binary forms; in lists against plain FastAPI; and the client against a bare socket. Those
that are compared are up at once and take turns under wrk, which is no bottleneck. Prints a table
and writes ``benchmarks/results/wire.json``. Run by ``make bench-wire``.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attention_service.resources import cpu_count
from benchmarks import machine
from benchmarks.served import served, server_of
from benchmarks.wire_calls import SHAPES, forms, need_wrk, turn
from benchmarks.wire_client import client_share

# Of the floor, in either binary form; of plain FastAPI, in lists.
_ASKED = {"tiny": 0.65, "mid": 0.8, "big": 0.9}
_ASKED_OF_LISTS = 3.0


def main() -> None:
    arguments = _arguments()
    need_wrk()
    head = machine.header(cpu_count(), ("onnxruntime", "numpy", "uvicorn", "fastapi", "httpx"), {})
    nowhere = Path("/nonexistent")
    rows: list[dict[str, Any]] = []
    with served(modules=nowhere) as service:
        with (
            server_of("wire_floor") as floor,
            served(modules=nowhere, log_level="warning") as quiet,
        ):
            among: dict[str, tuple[int, str]] = {
                "safetensors": (service.port, "safetensors"),
                "inference": (service.port, "inference"),
                "safetensors, no access log": (quiet.port, "safetensors"),
            }
            for name in SHAPES:
                rows += _compared(name, (floor, "safetensors"), among, _ASKED[name], arguments)
        with server_of("wire_fastapi") as plain, server_of("wire_floor") as floor:
            among = {
                "lists": (service.port, "lists"),
                "a bare ASGI app": (floor, "lists"),
            }
            longer = argparse.Namespace(**vars(arguments))
            longer.seconds *= 3  # a large call takes it seconds
            for name in SHAPES:
                rows += _compared(name, (plain, "lists"), among, _ASKED_OF_LISTS, longer)
        share = client_share(service.port, 20 * arguments.rounds)
        print(share)
    report = head | {"rows": rows, "client": share} | vars(arguments)
    if not arguments.dry_run:
        print(f"written to {machine.write('wire', report)}")


def _compared(
    name: str,
    measure: tuple[int, str],
    among: Mapping[str, tuple[int, str]],
    asked: float,
    arguments: argparse.Namespace,
) -> Iterator[dict[str, Any]]:
    """A row for each number of callers: servers in turns, against one that is the measure.

    Args:
        name: of the shape.
        measure: port and form.
        among: what is measured → port and form.
        asked: of the measure.
        arguments: rounds and seconds.
    """
    calls = forms(SHAPES[name])
    for callers in (1, 4):
        rounds = []
        for _ in range(arguments.rounds + 1):
            turns = [
                turn(port, calls[form], callers, arguments.seconds)
                for port, form in (measure, *among.values())
            ]
            rounds.append((turns[0], dict(zip(among, turns[1:], strict=True))))
        row = _row(name, callers, rounds[1:], asked)
        print(row)
        yield row


def _row(
    name: str, callers: int, rounds: list[tuple[float, dict[str, float]]], asked: float
) -> dict[str, Any]:
    """The middle of the rounds' ratios to the measure."""
    ratios = {who: [turns[who] / measure for measure, turns in rounds] for who in rounds[0][1]}
    middle = {who: round(statistics.median(each), 3) for who, each in ratios.items()}
    return {
        "shape": name,
        "callers": callers,
        "measure_a_second": round(statistics.median(measure for measure, _ in rounds), 1),
        "ratio": middle,
        "least_and_most": {
            who: [round(min(each), 3), round(max(each), 3)] for who, each in ratios.items()
        },
        "asked": asked,
        "met": {who: ratio >= asked for who, ratio in middle.items()},
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=2, help="of each turn")
    parser.add_argument("--dry-run", action="store_true", help="write no results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
