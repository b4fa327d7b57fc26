"""Two replicas behind a real HAProxy, with the configuration that is deployed."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from attention_client import AttentionClient
from attention_wire.bodies import PROBLEM
from tests.reference import attention
from tests.service.test_deployment import CONFIGURATION, REPLICAS
from tests.system.harness import (
    Service,
    free_port,
    run,
    running,
    serving,
    stop,
    wait_until_ready,
)
from tests.waiting import wait_until

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

CALL = {"query": [[1, 0]], "key": [[1, 0], [0, 1]], "value": [[1, 2], [3, 4]]}
WEIGHTS = [[1 / (1 + np.exp(-(0.5**0.5))), 1 / (1 + np.exp(0.5**0.5))]]
# It takes a replica a second or more, and fits in a buffer of HAProxy: short words, one token each.
LONG_CALL = {"text": ["a " * 500] * 14, "return": {"weights": False}}


@dataclass(frozen=True)
class Logged:
    """A line of HAProxy's log: who answered a call, and after how many retries."""

    replica: str
    status: int
    retries: str


@dataclass(frozen=True)
class Deployment:
    """HAProxy, its replicas by the name that its configuration gives them, and its log."""

    url: str
    metrics_url: str
    replicas: dict[str, Service]
    log: Path

    def running(self, *names: str) -> float:
        """How many calls compute in these replicas, by default in all."""
        texts = [
            httpx.get(f"{self.replicas[name].url}/metrics", trust_env=False).text
            for name in names or REPLICAS
        ]
        return sum(
            float(text.partition("\nattention_running ")[2].split("\n")[0]) for text in texts
        )

    def logged(self, *request_ids: str) -> list[Logged]:
        """The lines of some calls."""
        # A line is written when the answer has been sent, so it may come a little later.
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            lines = re.findall(
                r'\] (\S+) [-\d/]+ (\d+) \d+ \d+/\d+/(\S+) ".*" (\S+)$',
                self.log.read_text(),
                re.MULTILINE,
            )
            found = {line[3]: Logged(line[0], int(line[1]), line[2]) for line in lines}
            if found.keys() >= set(request_ids):
                return [found[request_id] for request_id in request_ids]
            time.sleep(0.1)
        pytest.fail(f"{set(request_ids) - found.keys()} are not in the log of HAProxy")

    def post(self, call: dict[str, Any], path: str = "/v1/attention") -> httpx.Response:
        """One call on a connection of its own."""
        return httpx.post(self.url + path, json=call, timeout=60, trust_env=False)

    def served_by(self, calls: int) -> Counter[str]:
        """Which replicas answer so many calls, one after the other."""
        answers = [self.post(CALL).raise_for_status() for _ in range(calls)]
        lines = self.logged(*(answer.headers["X-Request-ID"] for answer in answers))
        return Counter(line.replica for line in lines)


def configuration(port: int, metrics_port: int, replicas: dict[str, Service]) -> str:
    """The deployed configuration; only the addresses are those of this test."""
    text = CONFIGURATION
    addresses = {
        "bind :8080": f"bind 127.0.0.1:{port}",
        "bind :8404": f"bind 127.0.0.1:{metrics_port}",
    }
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
            for name in REPLICAS
        }
        port, metrics_port = free_port(), free_port()
        file, log = folder / "haproxy.cfg", folder / "haproxy.log"
        file.write_text(configuration(port, metrics_port, replicas))
        run(["haproxy", "-c", "-f", file])
        # With one processor HAProxy takes one thread. Of several that write a line of the log at
        # once, one gives up, and the tests read all lines.
        one = ["taskset", "--cpu-list", str(min(os.sched_getaffinity(0)))]
        # -db: one process in the foreground, which is the one to end.
        process = stack.enter_context(running([*one, "haproxy", "-db", "-f", file], log))
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, process)
        try:
            yield Deployment(url, f"http://127.0.0.1:{metrics_port}", replicas, log)
        finally:
            # All begin to drain; the second signal that each gets in the end cuts that short.
            for replica in replicas.values():
                replica.process.terminate()


@pytest.fixture(scope="module")
def deployment(modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployed(modules, tmp_path_factory.mktemp("haproxy")) as deployment:
        yield deployment


@pytest.fixture
def failing_deployment(modules: Path, tmp_path: Path) -> Iterator[Deployment]:
    """One whose replicas the test may stop."""
    with deployed(modules, tmp_path) as deployment:
        yield deployment


@contextmanager
def flow(url: str, callers: int = 4) -> Iterator[list[httpx.Response]]:
    """Short calls without a pause while the block runs; half the callers keep their connection.

    The list has the answers so far. A connection that fails is raised when the block ends.
    """
    answers: list[httpx.Response] = []
    done = threading.Event()

    def call(headers: dict[str, str]) -> None:
        with httpx.Client(timeout=30, headers=headers, trust_env=False) as client:
            while not done.is_set():
                answers.append(client.post(f"{url}/v1/attention", json=CALL))

    with ThreadPoolExecutor(callers) as pool:
        ways = ({}, {"Connection": "close"})
        results = [pool.submit(call, ways[number % 2]) for number in range(callers)]
        try:
            yield answers
        finally:
            done.set()
    for result in results:
        result.result()


@contextmanager
def long_calls(deployment: Deployment, number: int) -> Iterator[list[Future[httpx.Response]]]:
    """Long calls that are under way when the block begins, and answered when it has ended."""
    with ThreadPoolExecutor(number) as pool:
        calls = [
            pool.submit(deployment.post, LONG_CALL, "/v1/text/attention") for _ in range(number)
        ]
        wait_until(lambda: deployment.running() == number or any(call.done() for call in calls))
        assert not any(call.done() for call in calls)
        yield calls


def ids(answers: list[httpx.Response]) -> list[str]:
    return [answer.headers["X-Request-ID"] for answer in answers]


# --- While all is well -----------------------------------------------------------------


def test_both_replicas_answer_and_say_the_same(deployment: Deployment) -> None:
    counts = deployment.served_by(20)
    assert counts.keys() == set(REPLICAS)
    assert min(counts.values()) >= 8, counts

    weights = [deployment.post(CALL).json()["weights"] for _ in range(4)]
    np.testing.assert_allclose(weights, [WEIGHTS] * 4, rtol=1e-6)
    call = {"text": "The cat sat.", "layers": [0], "heads": [0]}
    answers = [deployment.post(call, "/v1/text/attention").raise_for_status() for _ in range(4)]
    assert len({answer.text for answer in answers}) == 1
    assert {line.replica for line in deployment.logged(*ids(answers))} == set(REPLICAS)


def test_many_callers_are_spread_over_both(deployment: Deployment) -> None:
    with flow(deployment.url) as answers:
        time.sleep(1)
    lines = deployment.logged(*ids(answers))
    assert {line.status for line in lines} == {200}
    counts = Counter(line.replica for line in lines)
    assert min(counts[name] for name in REPLICAS) > 0.3 * len(lines), counts


def test_short_calls_go_where_no_long_one_is(deployment: Deployment) -> None:
    with long_calls(deployment, 1) as calls:
        counts = deployment.served_by(6)
        assert not calls[0].done()
    (busy,) = deployment.logged(*ids([call.result() for call in calls]))
    assert counts.keys() == set(REPLICAS) - {busy.replica}


def test_the_callers_request_id_passes_through(deployment: Deployment) -> None:
    answer = httpx.post(
        f"{deployment.url}/v1/attention",
        json=CALL,
        headers={"X-Request-ID": "a-callers-own-id"},
        trust_env=False,
    )
    assert answer.headers["X-Request-ID"] == "a-callers-own-id"
    assert deployment.logged("a-callers-own-id")[0].status == 200


@pytest.mark.parametrize("path", ["/metrics", "/%6detrics", "/metrics?a=b", "/metrics#a"])
def test_the_public_sees_no_metrics(deployment: Deployment, path: str) -> None:
    host, port = deployment.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 5) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        with connection.makefile("rb") as file:
            answer = file.read()
    assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400"))
    assert b"attention_" not in answer


def test_it_tells_prometheus_of_its_replicas(deployment: Deployment) -> None:
    answer = httpx.get(f"{deployment.metrics_url}/metrics", trust_env=False)
    for name in REPLICAS:
        is_up = f'haproxy_server_status{{proxy="replicas",server="{name}",state="UP"}} 1'
        assert is_up in answer.text
    nothing = httpx.get(f"{deployment.metrics_url}/v1/info", trust_env=False)
    assert nothing.status_code == httpx.codes.NOT_FOUND


def test_the_service_learns_who_calls(
    modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTENTION_TRUSTED_PROXIES", "127.0.0.1")
    monkeypatch.setenv("ATTENTION_LOG_FORMAT", "json")
    with deployed(modules, tmp_path) as deployment:
        headers = {"X-Request-ID": "of-another", "X-Forwarded-For": "203.0.113.9"}
        transport = httpx.HTTPTransport(local_address="127.0.0.2")
        with httpx.Client(transport=transport, headers=headers, trust_env=False) as client:
            assert client.post(f"{deployment.url}/v1/attention", json=CALL).is_success
        (line,) = deployment.logged("of-another")
        log = tmp_path / f"{line.replica}.log"
        wait_until(lambda: "of-another" in log.read_text())  # lines are written afterwards
    (told,) = (json.loads(text) for text in log.read_text().splitlines() if "of-another" in text)
    assert told["caller"] == "127.0.0.2"


def test_a_call_larger_than_haproxys_buffers(deployment: Deployment) -> None:
    query = np.random.default_rng(0).normal(size=(512, 64)).tolist()
    answer = deployment.post({"query": query, "key": query, "value": query}).raise_for_status()
    assert np.shape(answer.json()["weights"]) == (512, 512)


# --- When replicas end -----------------------------------------------------------------


def test_stopping_a_replica_loses_no_call(failing_deployment: Deployment) -> None:
    deployment = failing_deployment
    leaving = deployment.replicas["attention-1"].process
    with long_calls(deployment, 2) as calls, flow(deployment.url) as answers:
        time.sleep(0.5)
        before = len(answers)
        stop(leaving)
        time.sleep(0.5)
    assert leaving.returncode == 0

    long = deployment.logged(*ids([call.result() for call in calls]))
    assert {line.replica for line in long} == set(REPLICAS)
    short = deployment.logged(*ids(answers))
    assert {line.replica for line in short[:before]} == set(REPLICAS)
    assert len(short) > before
    # None needed a second try: no call was sent to where it would not be answered.
    assert {(line.status, line.retries) for line in [*long, *short]} == {(200, "0")}
    assert deployment.served_by(4).keys() == {"attention-2"}

    # And with none left, HAProxy answers as the service would.
    stop(deployment.replicas["attention-2"].process)
    answer = deployment.post(CALL)
    assert answer.status_code == httpx.codes.SERVICE_UNAVAILABLE
    assert answer.headers["Content-Type"] == PROBLEM
    assert answer.headers["Retry-After"] == "1"
    assert answer.json()["code"] == "not_ready"
    assert "X-Request-ID" in answer.headers


def test_a_replica_that_dies_loses_no_call(failing_deployment: Deployment) -> None:
    deployment = failing_deployment
    with long_calls(deployment, 2) as calls, flow(deployment.url) as answers:
        time.sleep(0.3)
        deployment.replicas["attention-2"].process.kill()
        time.sleep(2)
    long = deployment.logged(*ids([call.result() for call in calls]))
    short = deployment.logged(*ids(answers))
    assert {line.status for line in [*long, *short]} == {200}
    # One of the long calls was in the replica that died, and began anew in the other.
    assert {line.replica for line in long} == {"attention-1"}
    assert sorted(line.retries for line in long) == ["+1", "0"]
    assert deployment.served_by(4).keys() == {"attention-1"}


def test_a_large_call_is_lost_with_its_replica_and_says_so(failing_deployment: Deployment) -> None:
    deployment = failing_deployment
    deployment.replicas["attention-2"].process.kill()
    large = {**LONG_CALL, "text": ["a " * 500] * 28}
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(deployment.post, large, "/v1/text/attention")
        wait_until(lambda: deployment.running("attention-1") == 1 or call.done())
        deployment.replicas["attention-1"].process.kill()
    answer = call.result()
    assert answer.status_code == httpx.codes.BAD_GATEWAY
    assert answer.headers["Content-Type"] == PROBLEM
    assert answer.json()["status"] == httpx.codes.BAD_GATEWAY
    assert "X-Request-ID" in answer.headers


@pytest.mark.timeout(240)
def test_replicas_end_and_come_back_for_a_minute_and_no_client_sees_it(
    modules: Path, tmp_path: Path
) -> None:
    """Eight clients for 60 s, while a replica is told to end, and later is killed."""
    rng = np.random.default_rng(0)
    shapes = [(1, 2, 8, 16), (1, 4, 64, 32), (1, 8, 200, 64)]
    calls = [[rng.standard_normal(s).astype(np.float32) for _ in range(3)] for s in shapes]
    expected = [attention(*tensors) for tensors in calls]
    counts, wrong = Counter[int](), list[str]()
    with ExitStack() as stack:
        deployment = stack.enter_context(deployed(modules, tmp_path))
        end = time.monotonic() + 60

        def client(number: int) -> None:
            with AttentionClient(deployment.url, timeout=60) as own:
                which = number
                while time.monotonic() < end:
                    which = (which + 1) % len(calls)
                    result = own.attention(*calls[which])
                    for found, right in (
                        (result.output, expected[which].output),
                        (result.weights, expected[which].weights),
                    ):
                        if np.abs(found - right).max() > 1e-5:
                            wrong.append(f"{which}: off by {np.abs(found - right).max()}")
                    counts[number] += 1

        with ThreadPoolExecutor(8) as pool:
            clients = [pool.submit(client, number) for number in range(8)]
            time.sleep(5)
            for name, how in (("attention-1", "terminate"), ("attention-2", "kill")):
                replica = deployment.replicas[name]
                getattr(replica.process, how)()
                replica.process.wait(30)
                again = serving(modules, tmp_path / f"{name}-again.log", 5, replica.port)
                stack.enter_context(again)
                time.sleep(8)
            for one in clients:
                one.result()
    assert wrong == []
    assert min(counts[number] for number in range(8)) > 20
