"""What the system tests are made of: commands that must be there, processes that end, services.

A tool that is missing fails a test and never skips it: `make test-system` installs them all.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

REPOSITORY = Path(__file__).parents[2]

# Prefixes of a command. The first replaces itself by the command, so that the process keeps
# its id. The second gives the command and all that it starts process ids and mounts of their
# own, which end together: nothing stays behind of a command that is stopped halfway.
ENDS_WITH_US = ["setpriv", "--pdeathsig", "KILL"]
CONTAINED = [*ENDS_WITH_US, "unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


def run(
    command: Sequence[str | Path],
    *,
    timeout: float = 60,
    env: Mapping[str, str] | None = None,
    cwd: Path = REPOSITORY,
) -> str:
    """What a command prints; if it fails, the test fails with all that it printed."""
    result = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        timeout=timeout,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, (
        f"{shlex.join(result.args)} failed:\n{result.stdout}{result.stderr}"
    )
    return result.stdout


@contextmanager
def running(
    command: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the background, ended by its id. pytest shows its log if the test fails.

    If the tests themselves are killed, the kernel ends it.
    """
    with (
        log.open("ab") as output,
        subprocess.Popen(
            [*ENDS_WITH_US, *map(str, command)],
            cwd=REPOSITORY,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            yield process
        finally:
            stop(process)
            print(f"--- {log.name} ---\n{log.read_text(errors='replace')}")


def stop(process: subprocess.Popen[bytes], timeout: float = 20) -> None:
    """Ends a process as an orchestrator does: SIGTERM, and SIGKILL past its grace."""
    process.terminate()
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(timeout)


def wait_until_ready(url: str, process: subprocess.Popen[bytes], timeout: float = 60) -> None:
    """Returns when the readiness probe answers 200; fails if the process ends before."""
    deadline = time.monotonic() + timeout
    with httpx.Client(trust_env=False) as client:
        while time.monotonic() < deadline:
            assert process.poll() is None, f"ended with {process.returncode} before it was ready"
            try:
                if client.get(f"{url}/readyz").status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
    pytest.fail(f"{url} was not ready in {timeout} s")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Service:
    """A service that runs: where it answers, and its process."""

    url: str
    port: int
    process: subprocess.Popen[bytes]


@contextmanager
def serving(
    modules: Path, log: Path, drain_delay: float = 0, port: int | None = None
) -> Iterator[Service]:
    """A real service on a port of this machine, by default a free one."""
    port = port or free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "attention_service", "serve"]
    settings = {
        "ATTENTION_HOST": "127.0.0.1",
        "ATTENTION_PORT": str(port),
        "ATTENTION_MODULES": str(modules),
        "ATTENTION_DRAIN_DELAY": str(drain_delay),
    }
    with running(command, log, settings) as process:
        wait_until_ready(url, process)
        yield Service(url, port, process)
