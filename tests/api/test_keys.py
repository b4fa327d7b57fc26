"""Keys over HTTP: who is let in, what is said to the others, and what everybody may see."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from attention_client import AttentionClient, UnauthorizedError
from attention_service.settings import Settings
from tests.conftest import RunningService
from tests.waiting import wait_until

ALICE, BOB, BOBS_NEXT = "att_of-alice", "att_of-bob", "att_next-of-bob"
CALL = {"query": [[1.0, 0.0]], "key": [[1.0, 0.0]], "value": [[1.0, 2.0]]}
OPEN = (
    *("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"),
    *("/", "/page/main.js", "/docs", "/openapi.json"),
)
GUARDED = (
    *("/v1/info", "/v1/modules", "/v1/modules/example", "/metrics", "/nothing/here"),
    "/v2/models/sdpa",
)


def line(name: str, key: str) -> str:
    return f"{name}:{hashlib.sha256(key.encode()).hexdigest()}\n"


def replace(path: Path, text: str) -> None:
    """As editors and mounted secrets do it: another file takes the name."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text("# of the tests\n\n" + line("alice", ALICE) + line("bob", BOB))
    return path


@pytest.fixture(scope="module")
def url(keys_file: Path, start_service: Callable[[Settings], RunningService]) -> str:
    settings = Settings(modules=Path("/nonexistent"), provider="cpu", api_keys_file=keys_file)
    return start_service(settings).url


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url) as client:
        yield client


def call(http: httpx.Client, authorization: str | None) -> httpx.Response:
    headers = {} if authorization is None else {"Authorization": authorization}
    return http.post("/v1/attention", json=CALL, headers=headers)


@pytest.mark.parametrize("authorization", [f"Bearer {ALICE}", f"bearer  {BOB}", f"BEARER {BOB}"])
def test_a_key_lets_in(http: httpx.Client, authorization: str) -> None:
    assert call(http, authorization).json()["output"] == [[1.0, 2.0]]


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer att_of-nobody",
        f"Basic {ALICE}",
        f"Bearer {ALICE}x",
        f"Bearer {ALICE[:-1]}",
        ALICE,
        f"Bearer {hashlib.sha256(ALICE.encode()).hexdigest()}",  # what the file holds
        "Bearer alice",
    ],
)
def test_anything_else_does_not(http: httpx.Client, authorization: str | None) -> None:
    answer = call(http, authorization)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["code"] == "unauthorized"
    assert answer.json()["request_id"] == answer.headers["X-Request-ID"]
    assert "att_" not in answer.text  # nothing of what was sent


def test_bytes_that_are_no_text_do_not(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 5) as connection:
        connection.sendall(
            b"GET /v1/info HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\xc3\x28\r\n"
            b"Connection: close\r\n\r\n"
        )
        assert connection.recv(4096).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("path", OPEN)
def test_what_asks_for_no_key(http: httpx.Client, path: str) -> None:
    assert http.get(path).status_code == 200


@pytest.mark.parametrize("path", GUARDED)
def test_what_asks_for_one(http: httpx.Client, path: str) -> None:
    assert http.get(path).status_code == 401
    known = http.get(path, headers={"Authorization": f"Bearer {ALICE}"})
    assert known.status_code == (404 if path in GUARDED[2::2] else 200)


def test_it_is_said_before_the_body_is_read(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 5) as connection:
        connection.sendall(
            b"POST /v1/attention HTTP/1.1\r\nHost: x\r\nContent-Length: 200000000\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        head = connection.recv(4096)
    assert head.startswith(b"HTTP/1.1 401 ")
    assert b"connection: close" in head.lower()


def test_the_service_says_that_it_asks_for_keys(url: str) -> None:
    with AttentionClient(url, api_key=BOB) as client:
        info = client.info()
    assert info.keys_required
    assert info.warnings == []


def test_the_clients_error(url: str) -> None:
    with AttentionClient(url, api_key="att_wrong") as client:
        with pytest.raises(UnauthorizedError) as refused:
            client.info()
        assert "att_wrong" not in str(refused.value)


def test_a_changed_file_is_taken_up_and_a_broken_one_is_not(
    http: httpx.Client, keys_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = keys_file.read_text()
    try:
        # One name may have two keys: the new one is given out before the old one goes.
        replace(keys_file, line("bob", BOB) + line("bob", BOBS_NEXT))
        wait_until(lambda: call(http, f"Bearer {BOBS_NEXT}").status_code == 200)
        assert call(http, f"Bearer {BOB}").status_code == 200
        assert call(http, f"Bearer {ALICE}").status_code == 401
        broken = line("bob", BOB) + "alice:" + ALICE + "\n"
        replace(keys_file, broken)
        wait_until(
            lambda: (
                call(http, "Bearer att_of-nobody").status_code == 401
                and any("stay as they were" in record.getMessage() for record in caplog.records)
            )
        )
        assert call(http, f"Bearer {BOBS_NEXT}").status_code == 200
        assert "line 2" in caplog.text
        assert ALICE not in caplog.text
        keys_file.unlink()
        time.sleep(1.1)
        assert call(http, f"Bearer {BOBS_NEXT}").status_code == 200
    finally:
        replace(keys_file, before)
    wait_until(lambda: call(http, f"Bearer {ALICE}").status_code == 200)


# --- The command line -------------------------------------------------------------------------


def command(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    return subprocess.run(
        [sys.executable, "-m", "attention_service", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_makes_a_key_that_its_line_lets_in(
    tmp_path: Path, start_service: Callable[[Settings], RunningService]
) -> None:
    made = command("key", "carol@example.org")
    assert made.returncode == 0
    assert made.stdout.startswith("carol@example.org:")
    key = made.stderr.split()[-1]
    assert key not in made.stdout
    assert len(key) > 40
    path = tmp_path / "keys"
    path.write_text(made.stdout)
    settings = Settings(modules=Path("/nonexistent"), provider="cpu", api_keys_file=path)
    with AttentionClient(start_service(settings).url, api_key=key) as client:
        assert client.info().keys_required
    assert command("key", "carol@example.org").stdout != made.stdout


@pytest.mark.parametrize("name", ["", "two words", "a:b", "-x" * 3, "é", "a" * 65])
def test_a_name_that_no_line_can_hold(name: str) -> None:
    made = command("key", "--", name)
    assert made.returncode == 2
    assert "is no name for a key" in made.stderr
    assert made.stdout == ""


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read: No such file"),
        ("", "holds no key"),
        ("# nobody\n", "holds no key"),
        (line("a", "b") + "att_in-the-clear\n", "line 2"),
        ("a:" + "F" * 64 + "\n", "line 1"),
        ("a b:" + "0" * 64 + "\n", "line 1"),
        ("\0\xff\n", "line 1"),
    ],
)
def test_a_service_does_not_start_with_keys_that_it_cannot_use(
    tmp_path: Path, content: str | None, says: str
) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_text(content, encoding="latin-1")
    tried = command("serve", "--port", "0", ATTENTION_API_KEYS_FILE=str(path))
    assert tried.returncode == 2
    assert "ATTENTION_API_KEYS_FILE" in tried.stderr
    assert says in tried.stderr
    assert "in-the-clear" not in tried.stderr
    assert "0" * 64 not in tried.stderr
