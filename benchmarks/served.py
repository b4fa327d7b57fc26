"""Servers for a measurement: the service, with variables, and others of this package."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MODULES = Path(__file__).parents[1] / ".modules"
_START_SECONDS = 120.0
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Served:
    """A running service.

    Attributes:
        port: of 127.0.0.1.
        process: its process.
        log: what it has logged: in a file, for a pipe that nobody reads would stop it.
    """

    port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def resident_bytes(self) -> int:
        """Memory that it has in use."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * _PAGE

    def metrics(self) -> dict[str, float]:
        """Its metrics without labels, and those with labels as Prometheus writes them."""
        text = self.get("/metrics")
        return {
            name: float(value)
            for name, _, value in (line.rpartition(" ") for line in text.splitlines())
            if name and not name.startswith("#")
        }

    def get(self, path: str) -> str:
        """What a route answers."""
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:  # noqa: S310  ours
            return str(answer.read(), "utf-8")


@contextmanager
def served(*, modules: Path = MODULES, **variables: object) -> Iterator[Served]:
    """A service on a free port, ready, with variables ``ATTENTION_…`` by their lower-case names."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ATTENTION_")}
    port = free_port()
    given = {"port": port, "modules": modules, "drain_delay": 0, **variables}
    environment |= {f"ATTENTION_{name.upper()}": str(value) for name, value in given.items()}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "attention_service", "serve"],
                env=environment,
                stderr=output,
                stdin=subprocess.DEVNULL,
            )
        try:
            yield _ready(Served(port, process, log))
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def server_of(module: str) -> Iterator[int]:
    """Another server of this package, on a free port."""
    port = free_port()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{module}", str(port)], stdout=log, stderr=log
        )
    try:
        while process.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5)
                break
            except urllib.error.URLError:
                time.sleep(0.05)
        else:
            raise RuntimeError(f"{module} did not start")
        yield port
    finally:
        process.terminate()
        process.wait(30)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _ready(service: Served) -> Served:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and service.process.poll() is None:
        try:
            service.get("/readyz")
        except urllib.error.URLError:
            time.sleep(0.02)
        else:
            return service
    raise RuntimeError(f"the service did not start:\n{service.log.read_text()}")
