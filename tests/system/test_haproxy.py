"""Two replicas behind a real HAProxy, with the configuration that is deployed."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.system.harness import (
    REPOSITORY,
    Service,
    free_port,
    run,
    running,
    serving,
    stop,
    wait_until_ready,
)

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

CALL = {"query": [[1, 0]], "key": [[1, 0], [0, 1]], "value": [[1, 2], [3, 4]]}


@dataclass(frozen=True)
class Deployment:
    """HAProxy, its replicas by the name that its configuration gives them, and its log."""

    url: str
    replicas: dict[str, Service]
    log: Path

    def replica_of(self, request_id: str) -> str:
        """Which replica answered a call: HAProxy's log names it beside the call's id."""
        # A line is written when the answer has been sent, so it may come a little later.
        for _ in range(50):
            found = re.search(
                rf"\] (\S+) .* {re.escape(request_id)}$", self.log.read_text(), re.MULTILINE
            )
            if found:
                return found[1]
            time.sleep(0.1)
        pytest.fail(f"{request_id} is not in the log of HAProxy")


def configuration(port: int, replicas: dict[str, Service]) -> str:
    """The deployed configuration; only the addresses are those of this test."""
    text = (REPOSITORY / "deploy/compose/haproxy.cfg").read_text()
    addresses = {"bind :8080": f"bind 127.0.0.1:{port}"}
    for name, service in replicas.items():
        addresses[f"server {name} {name}:8080"] = f"server {name} 127.0.0.1:{service.port}"
    for there, here in addresses.items():
        assert text.count(there) == 1
        text = text.replace(there, here)
    return text


@contextmanager
def deployed(modules: Path, folder: Path) -> Iterator[Deployment]:
    with ExitStack() as stack:
        replicas = {
            # The default delay: HAProxy must see the end of readiness before that of listening.
            name: stack.enter_context(serving(modules, folder / f"{name}.log", drain_delay=5))
            for name in ("attention-1", "attention-2")
        }
        port = free_port()
        file, log = folder / "haproxy.cfg", folder / "haproxy.log"
        file.write_text(configuration(port, replicas))
        run(["haproxy", "-c", "-f", file])
        # -db: one process in the foreground, which is the one to end.
        process = stack.enter_context(running(["haproxy", "-db", "-f", file], log))
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, process)
        yield Deployment(url, replicas, log)


@pytest.fixture(scope="module")
def deployment(modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployed(modules, tmp_path_factory.mktemp("haproxy")) as deployment:
        yield deployment


@pytest.fixture
def failing_deployment(modules: Path, tmp_path: Path) -> Iterator[Deployment]:
    """One whose replicas the test may stop."""
    with deployed(modules, tmp_path) as deployment:
        yield deployment


class Caller(threading.Thread):
    """Calls without a pause, each on a connection of its own, until it is told to stop."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.statuses: Counter[int] = Counter()
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.is_set():
            answer = httpx.post(f"{self.url}/v1/attention", json=CALL, trust_env=False)
            self.statuses[answer.status_code] += 1

    def finish(self) -> Counter[int]:
        self.done.set()
        self.join(30)
        return self.statuses


def served_by(deployment: Deployment, calls: int = 10) -> set[str]:
    names = set()
    for _ in range(calls):
        answer = httpx.post(f"{deployment.url}/v1/attention", json=CALL, trust_env=False)
        assert answer.status_code == httpx.codes.OK, answer.text
        names.add(deployment.replica_of(answer.headers["X-Request-ID"]))
    return names


def test_both_replicas_answer_and_say_the_same(deployment: Deployment) -> None:
    assert served_by(deployment) == {"attention-1", "attention-2"}

    texts = {
        json.dumps(
            httpx.post(
                f"{deployment.url}/v1/text/attention",
                json={"text": "The cat sat.", "layers": [0], "heads": [0]},
                trust_env=False,
            )
            .raise_for_status()
            .json()
        )
        for _ in range(4)
    }
    assert len(texts) == 1


def test_the_callers_request_id_passes_through(deployment: Deployment) -> None:
    answer = httpx.post(
        f"{deployment.url}/v1/attention",
        json=CALL,
        headers={"X-Request-ID": "a-callers-own-id"},
        trust_env=False,
    )
    assert answer.headers["X-Request-ID"] == "a-callers-own-id"
    assert deployment.replica_of("a-callers-own-id") in deployment.replicas


def test_a_call_larger_than_haproxys_buffers(deployment: Deployment) -> None:
    query = np.random.default_rng(0).normal(size=(512, 64)).tolist()
    answer = httpx.post(
        f"{deployment.url}/v1/attention",
        json={"query": query, "key": query, "value": query},
        timeout=30,
        trust_env=False,
    )
    assert np.shape(answer.raise_for_status().json()["weights"]) == (512, 512)


def test_stopping_a_replica_loses_no_call(failing_deployment: Deployment) -> None:
    deployment = failing_deployment
    caller = Caller(deployment.url)
    caller.start()
    stop(deployment.replicas["attention-1"].process)
    statuses = caller.finish()
    assert set(statuses) == {200}, statuses
    assert served_by(deployment) == {"attention-2"}

    # And with none left, HAProxy answers as the service would.
    stop(deployment.replicas["attention-2"].process)
    answer = httpx.post(f"{deployment.url}/v1/attention", json=CALL, trust_env=False)
    assert answer.status_code == httpx.codes.SERVICE_UNAVAILABLE
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["Retry-After"] == "1"
    assert answer.json()["code"] == "not_ready"


def test_a_replica_that_dies_loses_no_call(failing_deployment: Deployment) -> None:
    deployment = failing_deployment
    caller = Caller(deployment.url)
    caller.start()
    time.sleep(0.5)
    deployment.replicas["attention-2"].process.send_signal(signal.SIGKILL)
    time.sleep(2)
    statuses = caller.finish()
    assert set(statuses) == {200}, statuses
    assert served_by(deployment) == {"attention-1"}
