"""`serve --workers`: a worker that dies is replaced, and none that is replaced is missed."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import threading
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.service.served import OUTPUT, TENSORS, Command, Served, serving
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

QUICK = ("--workers", "2", "--drain-delay", "0.3")


def workers(served: Served) -> list[int]:
    """The processes that serve, in the order in which they began to."""
    return [int(pid) for pid in re.findall(r"worker (\d+) serves", served.log)]


def wait_for_workers(served: Served, count: int) -> list[int]:
    served.logged(rf"(?s)(worker \d+ serves.*){{{count}}}")
    return workers(served)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_worker_that_dies_is_replaced_and_all_end_together(
    environment: dict[str, str], tmp_path: Path
) -> None:
    with serving(environment, tmp_path, *QUICK) as served:
        first, second = wait_for_workers(served, 2)
        url = served.url()
        assert httpx.get(f"{url}/v1/info").json()["workers"] == 2
        os.kill(first, signal.SIGKILL)
        served.logged(f"ERROR .*worker {first} ended with status -9")
        third = wait_for_workers(served, 3)[2]
        for _ in range(10):
            answer = httpx.post(f"{url}/v1/attention", json=TENSORS)
            np.testing.assert_allclose(answer.json()["output"], OUTPUT, rtol=1e-6)
        served.signal(signal.SIGTERM)
        assert served.wait() == 0
        assert served.log.count("draining for 0.3 s") == 2
        assert not is_alive(second)
        assert not is_alive(third)
        assert served.log.count("the page: ") == 1  # not of each
        assert "Traceback" not in served.log


def test_workers_drain_when_their_supervisor_is_killed(
    environment: dict[str, str], tmp_path: Path
) -> None:
    with serving(environment, tmp_path, *QUICK) as served:
        both = wait_for_workers(served, 2)
        served.signal(signal.SIGKILL)
        wait_until(lambda: not any(map(is_alive, both)))
        served.wait()
        assert served.log.count("the supervisor is gone") == 2


def test_a_second_signal_ends_all_at_once(environment: dict[str, str], tmp_path: Path) -> None:
    with serving(environment, tmp_path, "--workers", "2", "--drain-delay", "30") as served:
        both = wait_for_workers(served, 2)
        served.signal(signal.SIGTERM)
        served.logged(r"draining for 30\.0 s")
        served.signal(signal.SIGTERM)
        assert served.wait(timeout=10) == -signal.SIGTERM
        wait_until(lambda: not any(map(is_alive, both)))


@pytest.mark.parametrize("wrong", ["keys", "provider"])
def test_a_start_that_fails_ends_with_the_reason(
    command: Command, tmp_path: Path, wrong: str
) -> None:
    variables = {"ATTENTION_API_KEYS_FILE": str(tmp_path / "keys")} if wrong == "keys" else {}
    words = ("--provider", "coreml") if wrong == "provider" else ()
    tried = command("serve", "--port", "0", "--workers", "2", *words, **variables)
    assert tried.returncode == 1
    assert "no worker can start" in tried.stderr
    reason = "cannot be read: No such file" if wrong == "keys" else "provider 'coreml' is not"
    assert reason in tried.stderr
    assert "Traceback" not in tried.stderr


def test_alone_it_says_what_sighup_is_for(environment: dict[str, str], tmp_path: Path) -> None:
    with serving(environment, tmp_path, "--drain-delay", "0") as served:
        url = served.url()
        served.signal(signal.SIGHUP)
        served.logged("SIGHUP restarts workers")
        assert httpx.get(f"{url}/readyz").status_code == 200
        served.signal(signal.SIGTERM)
        assert served.wait() == 0


def test_a_draining_service_closes_connections_with_their_answers(
    environment: dict[str, str], tmp_path: Path
) -> None:
    with (
        serving(environment, tmp_path, "--drain-delay", "3") as served,
        httpx.Client(base_url=served.url()) as client,
    ):
        assert "connection" not in client.get("/readyz").headers
        served.signal(signal.SIGTERM)
        served.logged("draining")
        for path in ("/readyz", "/v1/info", "/nothing"):
            assert client.get(path).headers["connection"] == "close"
        assert client.post("/v1/attention", json=TENSORS).headers["connection"] == "close"


class Caller(threading.Thread):
    """Keeps a connection alive and calls over it. It repeats nothing, but one thing: a request
    that found its connection closed before a byte of the answer came goes over a new one."""

    def __init__(self, url: str, stop: threading.Event) -> None:
        super().__init__()
        self._host = url.removeprefix("http://")
        self._stop_calls = stop
        self._body = json.dumps(TENSORS)
        self.seen = Counter[str]()
        self.failures: list[str] = []

    def run(self) -> None:
        connection = http.client.HTTPConnection(self._host, timeout=20)
        fresh = True
        while not self._stop_calls.is_set():
            try:
                connection.request("POST", "/v1/attention", self._body)
                response = connection.getresponse()
            except (http.client.RemoteDisconnected, ConnectionError, BrokenPipeError) as error:
                connection.close()
                if fresh:  # nobody took a new connection
                    self.failures.append(repr(error))
                    return
                self.seen["resent"] += 1
                fresh = True
                continue
            try:
                answer = json.loads(response.read())
                np.testing.assert_allclose(answer["output"], OUTPUT, rtol=1e-6)
            except Exception as error:  # noqa: BLE001  told below
                self.failures.append(f"{response.status}: {error!r}")
                return
            fresh = response.getheader("Connection") == "close"
            self.seen["closed" if fresh else "kept"] += 1
        connection.close()


def test_a_rolling_restart_under_load_loses_nothing(
    environment: dict[str, str], tmp_path: Path
) -> None:
    with serving(environment, tmp_path, *QUICK) as served:
        old = wait_for_workers(served, 2)
        stop = threading.Event()
        callers = [Caller(served.url(), stop) for _ in range(6)]
        for caller in callers:
            caller.start()
        wait_until(lambda: all(caller.seen["kept"] > 20 or caller.failures for caller in callers))
        served.signal(signal.SIGHUP)
        served.logged("restarted")
        new = wait_for_workers(served, 4)[2:]
        before = [caller.seen["kept"] for caller in callers]
        wait_until(
            lambda: all(
                caller.seen["kept"] > kept + 5 or caller.failures
                for caller, kept in zip(callers, before, strict=True)
            )
        )
        stop.set()
        for caller in callers:
            caller.join(30)
        assert [failure for caller in callers for failure in caller.failures] == []
        assert sum(caller.seen["closed"] for caller in callers) >= 1
        assert not any(map(is_alive, old))
        assert all(map(is_alive, new))
        served.signal(signal.SIGTERM)
        assert served.wait() == 0


def test_a_restart_that_fails_keeps_the_old_workers(
    environment: dict[str, str], tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("someone:" + "0" * 64 + "\n")
    variables = environment | {"ATTENTION_API_KEYS_FILE": str(keys)}
    with serving(variables, tmp_path / "none", *QUICK) as served:
        both = wait_for_workers(served, 2)
        keys.unlink()
        served.signal(signal.SIGHUP)
        served.logged("a new worker could not start; the old ones go on")
        assert all(map(is_alive, both))
        assert httpx.get(f"{served.url()}/readyz").status_code == 200
        keys.write_text("someone:" + "1" * 64 + "\n")
        served.signal(signal.SIGHUP)
        served.logged("restarted")
        assert not any(map(is_alive, both))
