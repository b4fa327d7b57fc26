"""`attention-service serve`: how it starts, what it says, and how it ends."""

from __future__ import annotations

import re
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.service.served import OUTPUT, TENSORS, Command, serving


def test_serve_says_its_address_and_takes_every_option(
    environment: dict[str, str], tmp_path: Path
) -> None:
    words = "--host 127.0.0.1 --provider cpu --threads 1 --root-path /prefix --drain-delay 0"
    with serving(environment, tmp_path / "none", *words.split(), "--log-level", "debug") as served:
        url = served.url()
        assert re.fullmatch(r"http://127\.0\.0\.1:[1-9]\d*", url)
        info = httpx.get(f"{url}/v1/info").json()
        assert (info["provider"], info["threads"]) == ("CPUExecutionProvider", 1)
        assert httpx.get(f"{url}/v1/modules").json() == {"modules": [], "refused": []}
        assert httpx.get(f"{url}/openapi.json").json()["servers"] == [{"url": "/prefix"}]
        served.logged(r"DEBUG .* /openapi\.json|GET /openapi\.json 200")
        assert httpx.get(f"{url}/healthz").status_code == 200
        served.logged(r"DEBUG attention_service\S* GET /healthz 200")
        served.signal(signal.SIGTERM)
        assert served.wait() == 0


@pytest.mark.slow
def test_sigterm_ends_readiness_at_once_and_service_after_the_delay(
    environment: dict[str, str], tmp_path: Path
) -> None:
    delay = 2.5
    variables = environment | {"ATTENTION_DRAIN_DELAY": str(delay)}
    with serving(variables, tmp_path) as served, httpx.Client(base_url=served.url()) as client:
        assert client.get("/readyz").status_code == 200
        began = time.monotonic()
        served.signal(signal.SIGTERM)
        served.logged(r"draining for 2\.5 s")
        ready = client.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["code"] == "not_ready"
        assert ready.headers["Retry-After"] == "1"
        assert client.get("/healthz").status_code == 200
        answer = client.post("/v1/attention", json=TENSORS)
        assert answer.status_code == 200
        np.testing.assert_allclose(answer.json()["output"], OUTPUT, rtol=1e-6)
        # A new connection is taken, too.
        assert httpx.get(f"{served.url()}/readyz").status_code == 503
        assert served.wait() == 0
        assert delay <= time.monotonic() - began < delay + 5
        assert "Traceback" not in served.log


def test_sigint_ends_it_without_the_delay(environment: dict[str, str], tmp_path: Path) -> None:
    with serving(environment, tmp_path, "--drain-delay", "30") as served:
        served.url()
        served.signal(signal.SIGINT)
        assert served.wait(timeout=10) == 0
        assert "Traceback" not in served.log


@contextmanager
def a_long_call(url: str, texts: int) -> Iterator[Future[httpx.Response]]:
    """A call that computes for a while, and has begun."""
    fields = {
        "text": ["word " * 500] * texts,
        "layers": [0],
        "heads": [0],
        "tensor_format": "base64",
        "return": {"weights": False},
    }
    with ThreadPoolExecutor(1) as threads, httpx.Client(base_url=url, timeout=60) as client:
        answer = threads.submit(client.post, "/v1/text/attention", json=fields)
        while "attention_running 1.0" not in httpx.get(f"{url}/metrics").text:
            assert not answer.done(), answer.result().text
        yield answer


@pytest.mark.slow
def test_what_was_taken_is_finished(environment: dict[str, str], text_module: Path) -> None:
    with (
        serving(environment, text_module, "--drain-delay", "0") as served,
        a_long_call(served.url(), texts=8) as answer,
    ):
        served.signal(signal.SIGTERM)
        served.logged("Shutting down")
        assert answer.result(60).status_code == 200
        assert len(answer.result().json()["results"]) == 8
        assert served.wait() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "logged"),
    [(signal.SIGTERM, "draining for 30.0 s"), (signal.SIGINT, "Waiting for connections to close")],
)
def test_a_second_signal_ends_it_at_once(
    environment: dict[str, str], text_module: Path, number: signal.Signals, logged: str
) -> None:
    with (
        serving(environment, text_module, "--drain-delay", "30") as served,
        a_long_call(served.url(), texts=100) as answer,
    ):
        served.signal(number)
        served.logged(logged)
        assert served.process.poll() is None
        began = time.monotonic()
        served.signal(number)
        assert served.wait() == -number  # ended by the signal itself
        assert time.monotonic() - began < 2
        with pytest.raises(httpx.TransportError):
            answer.result(5)


@pytest.mark.slow
def test_sigterm_while_it_starts(environment: dict[str, str], text_module: Path) -> None:
    with serving(environment, text_module, "--drain-delay", "30") as served:
        served.logged("Waiting for application startup")
        served.signal(signal.SIGTERM)
        assert served.wait(timeout=15) == 0
        assert "Traceback" not in served.log


def test_a_port_in_use(command: Command, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = command.fails("serve", "--port", str(port), "--modules", tmp_path)
    assert message.splitlines()[-1] == (
        f"attention-service: port {port} of 127.0.0.1 is in use: take another with --port or "
        "ATTENTION_PORT, as in make serve PORT=8081"
    )
    assert "loading what is in" not in message  # nor does it take as long as modules do


def test_the_log_begins_with_what_is_served_and_ends_with_where(
    environment: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "none"
    variables = environment | {"ATTENTION_MAX_TIMOUT": "5", "ATTENTION_MODULES_POLL": "0.05"}
    words = ("--threads", "1", "--drain-delay", "0")
    with serving(variables, folder, *words) as served:
        served.logged("the page: http")
        page = httpx.get(f"{served.url()}/")
        time.sleep(0.5)  # ten looks at the folder
        served.signal(signal.SIGTERM)
        assert served.wait() == 0
    assert "<html" in page.text
    log = served.log
    assert "WARNING attention_service.cli: ATTENTION_MAX_TIMOUT is no setting" in log
    assert re.search(rf"settings: host=127\.0\.0\.1 port=0 modules={folder} .*threads=1 ", log)
    start = rf"attention-service [\d.]+ on CPUExecutionProvider: 1 threads, [\d.]+ GB .*{folder}\n"
    assert re.search(start, log)
    assert log.count(f"module folder {folder} does not exist") == 1
    assert f"the page: {served.url()}/\n" in log


def test_wrong_settings_are_named_as_their_user_knows_them(command: Command) -> None:
    message = command.fails(
        "serve",
        *("--port", "99999", "--log-level", "loud", "--modules", __file__, "--provider", "gpu"),
        status=2,
        ATTENTION_THREADS="none",
        ATTENTION_MAX_RUNNING="0",
    )
    named = sorted(re.findall(r"^attention-service: (.*?): ", message, re.MULTILINE))
    assert named == [
        "--log-level or ATTENTION_LOG_LEVEL",
        "--modules or ATTENTION_MODULES",
        "--port or ATTENTION_PORT",
        "--provider or ATTENTION_PROVIDER",
        "--threads or ATTENTION_THREADS",
        "ATTENTION_MAX_RUNNING",  # which has no option
    ]
    assert len(message.splitlines()) == len(named)
    assert f"ATTENTION_MODULES: {__file__} cannot be listed: Not a directory\n" in message
    assert "'debug', 'info', 'warning' or 'error'" in message
    assert "'auto', 'cpu', 'cuda'" in message
