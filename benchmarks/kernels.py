"""Our kernels against PyTorch's ``scaled_dot_product_attention``, and against each other.

The two take turns in one run, each in a process of its own; what counts is the median of the
ratios of neighbouring turns. benchmarks/README.md describes the method. Prints a table and
writes ``benchmarks/results/kernels.json``. Run by ``make bench-kernels``.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from attention_service.attention.compute import compute
from attention_service.attention.engine import Engine
from attention_service.attention.sdpa import AttentionJob
from attention_service.heap import give_back_freed
from attention_service.resources import cpu_count
from attention_wire.schemas import AttentionRequest
from benchmarks import kernel_report, machine
from benchmarks.kernel_cases import CASES, WORKS, Case, Side
from benchmarks.torch_turns import TorchTurns, torch_turns
from benchmarks.turns import turn

Slot = tuple[str, Side]
Times = dict[Slot, list[float]]
# Small calls are repeated for so long within a turn, or so often.
TURN_SECONDS = 0.15
MOST_CALLS = 300


@dataclass(frozen=True, slots=True)
class Ours:
    """Our side of one work, its tensors checked and planned as they are before admission."""

    job: AttentionJob
    engine: Engine

    def service(self) -> object:
        """The service's compute phase: checks, casts, the computation, the answer's shapes."""
        return self.job.run()

    def kernel(self) -> Callable[[], object]:
        """The computation alone, of a call that is checked and cast already."""
        return partial(compute, self.job.call.prepared(), self.job.plan, self.engine)


def main() -> None:
    arguments = _arguments()
    cases = [case for case in CASES if _is_chosen(case, arguments.cases)]
    names = [name for name in WORKS if any(name in (case.work, case.base) for case in cases)]
    slots = _slots(names, cases)
    give_back_freed()  # as the service does when it starts
    engine = Engine(arguments.provider, arguments.threads)
    ours = {name: _ours(name, engine) for name in names}
    predicted = {name: kernel_report.prediction(ours[name].job) for name in names}
    kernel_report.print_predictions(predicted, engine)
    with ExitStack() as stack:
        torch: TorchTurns | None = None
        if any(side == "torch" for _, side in slots):
            turns = torch_turns(arguments.threads, arguments.provider, arguments.torch_python)
            torch = stack.enter_context(turns)
        errors = _load(names, ours, torch)
        head = machine.header(
            arguments.threads,
            ("onnxruntime" if arguments.provider == "cpu" else "onnxruntime-gpu", "onnx", "numpy"),
            {"torch": torch.about["torch"]} if torch else {},
        )
        times = _rounds(slots, ours, torch, arguments)
    found = [kernel_report.result(case, times, errors, ours[case.work].job) for case in cases]
    kernel_report.print_results(found)
    report = head | {
        "provider": engine.provider,
        "load_after": [round(load, 2) for load in os.getloadavg()],
        "torch": torch.about if torch else None,
        "method": {
            "rounds": arguments.rounds,
            "rounds_left_out": arguments.warm_up,
            "pause_seconds": arguments.pause,
            "turn_seconds": TURN_SECONDS,
            "calls_left_out_of_each_turn": 1,
            "most_calls_of_a_turn": MOST_CALLS,
            "figure": "median of the ratios of the turns' medians, round by round",
        },
        "works": {name: asdict(WORKS[name]) for name in names},
        "predicted": kernel_report.speed(engine) | {"works": predicted},
        "cases": found,
    }
    if not arguments.dry_run:
        name = "kernels" if arguments.provider == "cpu" else f"kernels-{arguments.provider}"
        print(f"\nwritten to {machine.write(name, report)}")


def _ours(name: str, engine: Engine) -> Ours:
    work = WORKS[name]
    fields = {**work.tensors(), **work.options, "return": work.wanted}
    return Ours(AttentionJob.of(AttentionRequest.model_validate(fields), engine), engine)


def _slots(names: Sequence[str], cases: Sequence[Case]) -> list[Slot]:
    """Whose turn follows whose: for each work ours, PyTorch's, and where asked the kernel's."""
    wanted = {(case.work, case.side) for case in cases}
    wanted |= {(case.base, case.base_side) for case in cases}
    sides: tuple[Side, ...] = ("service", "torch", "kernel")
    return [(name, side) for name in names for side in sides if (name, side) in wanted]


def _load(
    names: Sequence[str], ours: dict[str, Ours], torch: TorchTurns | None
) -> dict[str, float]:
    """Hand PyTorch the tensors, and compare what both sides compute.

    Returns:
        Work → the largest difference of its output, and of its weights where they are formed.
    """
    errors = {}
    for name in names:
        work = WORKS[name]
        if torch is None or work.torch is None:
            continue
        torch.load(name, work.torch, work.tensors(), work.torch_options)
        theirs, mine = torch.results(name), ours[name].job.run()
        errors[name] = max(
            float(np.abs(mine[key][:, :, : array.shape[2]] - array).max())
            for key, array in theirs.items()
        )
    return errors


def _rounds(
    slots: Sequence[Slot],
    ours: dict[str, Ours],
    torch: TorchTurns | None,
    arguments: argparse.Namespace,
) -> Times:
    """The median milliseconds of each turn, by slot, one a round."""
    takers: dict[Slot, Callable[[], list[float]]] = {}
    for name, side in slots:
        if side != "torch":
            mine = ours[name]
            work = mine.service if side == "service" else mine.kernel()
            takers[name, side] = partial(turn, work, TURN_SECONDS, MOST_CALLS)
        elif torch is not None:
            takers[name, side] = partial(torch.turn, name, TURN_SECONDS, MOST_CALLS)
    times: Times = {slot: [] for slot in slots}
    for number in range(arguments.warm_up + arguments.rounds):
        for slot, take in takers.items():
            # The threads of whoever ran before may go on waiting in a loop for some time.
            time.sleep(arguments.pause)
            taken = take()
            if number >= arguments.warm_up:
                times[slot].append(median(taken))
        total = arguments.warm_up + arguments.rounds
        print(f"round {number + 1} of {total}", file=sys.stderr, flush=True)
    return times


def _is_chosen(case: Case, words: Sequence[str]) -> bool:
    return not words or any(word in case.name for word in words)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("cases", nargs="*", help="parts of names of cases; all by default")
    parser.add_argument("--rounds", type=int, default=9, help="that count (%(default)s)")
    parser.add_argument("--warm-up", type=int, default=1, help="rounds before (%(default)s)")
    parser.add_argument("--pause", type=float, default=0.2, help="seconds between turns")
    parser.add_argument("--threads", type=int, default=cpu_count(), help="of each side")
    parser.add_argument("--provider", choices=["cpu", "cuda"], default="cpu", help="of each side")
    parser.add_argument("--torch-python", type=Path, help="a Python that has PyTorch already")
    parser.add_argument("--dry-run", action="store_true", help="write no results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
