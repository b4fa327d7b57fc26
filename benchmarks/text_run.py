"""A run of a text module against one of transformers, in turns.

With the weights of all layers against eager attention, which gives them; and the output alone
against PyTorch's fused operator.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import IO, Any, cast

import numpy as np

from attention_service.attention.engine import Engine
from attention_service.attention.job import Job
from attention_service.modules.folder import ModuleFolder
from attention_service.modules.text import TextModule
from attention_service.modules.text_job import TextJob
from attention_wire.schemas import TextRequest
from benchmarks.text_cases import CASES, ENCODER, FOLDERS, ROOT, Case, exported, text_of
from benchmarks.torch_turns import TorchTurns
from benchmarks.turns import turn

TURN_SECONDS = 0.15
MOST_CALLS = 300
Times = dict[tuple[str, str], list[float]]
METHOD = {
    "ours": "TextJob(module, request).run() in process: tokens in, results out",
    "theirs": "model(**tensors), with output_attentions=True where weights are asked for",
    "tokenization": "done before, on both sides",
    "figure": "median of the ratios of the turns' medians, round by round",
    "turn_seconds": TURN_SECONDS,
    "calls_left_out_of_each_turn": 1,
    "rounds_left_out": 1,
}


def measure(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row for each case, and what transformers' process says of itself."""
    with exported(ENCODER) as modules, _transformers(arguments) as theirs:
        module = ModuleFolder(modules, Engine("cpu", arguments.threads)).look().text(ENCODER)
        jobs = {case.name: _job(module, case) for case in CASES}
        apart = {case.name: _load(module, case, jobs[case.name], theirs) for case in CASES}
        times = _rounds(jobs, theirs, arguments)
        rows = [_row(case, times, apart[case.name]) for case in CASES]
        return rows, theirs.about


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    """The table of what was asked and seen."""
    print(f"\n{'one run':44}{'asked':>7}{'seen':>7} {'least to most':>15}{'met':>5}"
          f"{'ms':>9}{'theirs':>9}{'difference':>12}")  # fmt: skip
    for row in rows:
        span = f"{min(row['ratios']):.2f} to {max(row['ratios']):.2f}"
        print(
            f"{row['case']:44}{row['asked']:7.2f}{row['seen']:7.2f} {span:>15}"
            f"{'yes' if row['met'] else 'NO':>5}{row['ms']:9.2f}{row['their_ms']:9.2f}"
            f"{row['largest_difference']:12.0e}"
        )


def _request(case: Case) -> TextRequest:
    text = text_of(FOLDERS[ENCODER], case.tokens)
    return TextRequest.model_validate({"text": text, "return": case.wanted})


def _job(module: TextModule, case: Case) -> Job:
    return TextJob(module, _request(case))


def _load(module: TextModule, case: Case, job: Job, theirs: TorchTurns) -> float:
    """Hand the tokens over, and give the largest difference of what both sides compute."""
    (tokens,) = module.tokens(_request(case))
    tensors = {
        "input_ids": tokens.ids[None],
        "attention_mask": np.ones((1, len(tokens)), np.int64),
        "token_type_ids": tokens.type_ids[None],
    }
    theirs.load(case.name, case.attention, tensors, {"names": list(tensors)})
    (mine,) = job.run()["results"]
    found = theirs.results(case.name)
    return max(float(np.abs(mine[part] - array).max()) for part, array in found.items())


def _rounds(jobs: dict[str, Job], theirs: TorchTurns, arguments: argparse.Namespace) -> Times:
    """The median milliseconds of each turn, one a round; a round has one turn of each side."""
    takers: dict[tuple[str, str], Callable[[], list[float]]] = {}
    for name, job in jobs.items():
        takers[name, "ours"] = partial(turn, job.run, TURN_SECONDS, MOST_CALLS)
        takers[name, "theirs"] = partial(theirs.turn, name, TURN_SECONDS, MOST_CALLS)
    times: Times = {slot: [] for slot in takers}
    for number in range(arguments.rounds + 1):
        for slot, take in takers.items():
            # The threads of whoever ran before may go on waiting in a loop for some time.
            time.sleep(arguments.pause)
            taken = take()
            if number:
                times[slot].append(median(taken))
        print(f"round {number} of {arguments.rounds}", file=sys.stderr, flush=True)
    return times


def _row(case: Case, times: Times, apart: float) -> dict[str, Any]:
    mine, theirs = times[case.name, "ours"], times[case.name, "theirs"]
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    return {
        "case": case.name,
        "against": f"transformers, {case.attention}",
        "asked": case.asked,
        "seen": round(median(ratios), 3),
        "met": median(ratios) <= case.asked,
        "ratios": [round(ratio, 3) for ratio in ratios],
        "ms": round(median(mine), 3),
        "their_ms": round(median(theirs), 3),
        "largest_difference": apart,
    }


@contextmanager
def _transformers(arguments: argparse.Namespace) -> Iterator[TorchTurns]:
    """Transformers' process, which sleeps but for its turns; it ends with the block."""
    counts = {name: str(arguments.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    words = ["-m", "benchmarks.text_worker", str(arguments.threads), str(FOLDERS[ENCODER])]
    process = subprocess.Popen(
        [str(arguments.python), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **counts},
    )
    asks, answers = cast(IO[str], process.stdin), cast(IO[str], process.stdout)
    # Leaving closes its input, which ends it, and waits for it.
    with process, tempfile.TemporaryDirectory() as folder:
        yield TorchTurns(asks, answers, Path(folder))
