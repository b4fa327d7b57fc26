"""The installed command, as a process of its own."""

from __future__ import annotations

import math
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

COMMAND = Path(sys.executable).with_name("attention-service")
START_SECONDS = 60
TENSORS = {"query": [[1, 0], [0, 1]], "key": [[1, 0], [0, 1]], "value": [[1, 2], [3, 4]]}
# softmax([[1, 0], [0, 1]] / √2), written out.
LARGER = math.exp(1 / math.sqrt(2)) / (1 + math.exp(1 / math.sqrt(2)))
WEIGHTS = np.array([[LARGER, 1 - LARGER], [1 - LARGER, LARGER]])
OUTPUT = WEIGHTS @ np.array([[1, 2], [3, 4]])


class Command:
    """Runs the command to its end."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment

    def __call__(
        self, *words: str | Path, stdin: str = "", **variables: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(COMMAND), *map(str, words)],
            input=stdin,
            env=self.environment | variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def fails(self, *words: str | Path, status: int = 1, **variables: str) -> str:
        """Runs what must fail, with a message and nothing else; what it says."""
        result = self(*words, **variables)
        assert result.returncode == status, result
        assert not result.stdout
        assert "Traceback" not in result.stderr
        return result.stderr


class Served:
    """`attention-service serve` as a process, and what it has logged."""

    def __init__(self, words: Sequence[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [str(COMMAND), "serve", *words], env=environment, stderr=subprocess.PIPE, text=True
        )
        self._lines: list[str] = []
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._more:
                self._lines.append(line)
                self._more.notify_all()

    @property
    def log(self) -> str:
        return "".join(self._lines)

    def logged(self, pattern: str) -> re.Match[str]:
        """The first place in the log that matches, waited for."""
        with self._more:
            found = self._more.wait_for(lambda: re.search(pattern, self.log), START_SECONDS)
        assert found is not None, self.log
        return found

    def url(self) -> str:
        return self.logged(r"running on (http://\S+)")[1]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = 20) -> int:
        status = self.process.wait(timeout)
        self._reader.join(timeout)
        return status

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()


@contextmanager
def serving(environment: dict[str, str], modules: Path, *words: str) -> Iterator[Served]:
    served = Served(["--port", "0", "--modules", str(modules), *words], environment)
    try:
        yield served
    finally:
        served.close()
