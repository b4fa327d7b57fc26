"""Builds PyTorch's environment, starts PyTorch's process and gives it its turns."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from benchmarks.environments import environment

ROOT = Path(__file__).parents[1]
REQUIREMENTS = Path(__file__).with_name("requirements-torch.txt")


class TorchTurns:
    """PyTorch's process, which sleeps but for its turns.

    Attributes:
        about: its versions, threads and build of the parallel backend.
    """

    def __init__(self, asks: IO[str], answers: IO[str], folder: Path) -> None:
        self._asks = asks
        self._answers = answers
        self._folder = folder
        self.about: dict[str, Any] = self._read()

    def load(
        self, work: str, kind: str, tensors: Mapping[str, np.ndarray], options: dict[str, Any]
    ) -> None:
        """Hand it the tensors of some work."""
        paths = []
        for name, array in tensors.items():
            paths.append(str(self._folder / f"{name}.npy"))
            np.save(paths[-1], array)
        self._ask({"do": "load", "work": work, "kind": kind, "tensors": paths, "options": options})

    def results(self, work: str) -> dict[str, np.ndarray]:
        """What it computes: ``output``, and where it forms them some rows of ``weights``."""
        paths = {name: self._folder / f"{name}.npy" for name in ("output", "weights")}
        for path in paths.values():
            path.unlink(missing_ok=True)
        self._ask({"do": "results", "work": work, **{n: str(p) for n, p in paths.items()}})
        return {name: np.load(path) for name, path in paths.items() if path.exists()}

    def turn(self, work: str, seconds: float, most: int) -> list[float]:
        """Its turn: milliseconds of each call."""
        message = {"do": "turn", "work": work, "seconds": seconds, "most": most}
        times: list[float] = self._ask(message)["ms"]
        return times

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        self._asks.write(json.dumps(message) + "\n")
        self._asks.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line:
            raise RuntimeError("PyTorch's process has ended; what it wrote stands above")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def torch_turns(threads: int, device: str, python: Path | None) -> Iterator[TorchTurns]:
    """PyTorch's process; it ends with the block.

    Args:
        threads: in which it computes.
        device: on which it computes, ``cpu`` or ``cuda``.
        python: of an environment that has PyTorch; None for one that is built here.
    """
    # Its threads wait as PyTorch lets them wait: set to sleep, they would slow small calls.
    counts = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    chosen = str(python or environment("bench-torch", REQUIREMENTS))
    command = [chosen, "-m", "benchmarks.torch_worker", str(threads), device]
    process = subprocess.Popen(
        command,
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
