"""Connections that read in large pieces: what is read is what was sent, and errors are httpx's."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import numpy as np
import pytest

from attention_client import AttentionClient, ConnectionFailedError
from attention_client._messages import Received
from attention_client._wide import wide_client
from tests.reference import attention


def test_an_answer_of_megabytes_is_right(service_url: str) -> None:
    rng = np.random.default_rng(0)
    tensors = [rng.standard_normal((1, 4, 512, 8), np.float32) for _ in range(3)]
    with AttentionClient(service_url) as client:
        found = client.attention(*tensors)
    expected = attention(*tensors)
    np.testing.assert_allclose(found.weights, expected.weights, rtol=1e-4, atol=1e-6)
    assert not found.weights.flags.writeable


@contextmanager
def answering(*pieces: bytes) -> Iterator[str]:
    """A server that answers one request with these bytes, and closes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(2**16)
                for piece in pieces:
                    connection.sendall(piece)

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        thread.join()


def test_an_answer_that_breaks_off_is_an_error() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    with (
        answering(head, b"{}") as url,
        AttentionClient(url, max_retries=0) as client,
        pytest.raises(ConnectionFailedError, match=r"incomplete|without sending"),
    ):
        client.info()


def test_bytes_that_are_no_http_are_an_error() -> None:
    with (
        answering(b"SSH-2.0\r\n\r\n") as url,
        AttentionClient(url, max_retries=0) as client,
        pytest.raises(ConnectionFailedError),
    ):
        client.info()


def test_errors_are_those_of_httpx() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with wide_client(is_https=False) as client:
        with pytest.raises(httpx.ConnectError):
            client.get(f"http://127.0.0.1:{port}")
        with pytest.raises(httpx.UnsupportedProtocol):
            client.get("ftp://127.0.0.1")


def test_proxies_of_the_environment_are_gone_by(monkeypatch: pytest.MonkeyPatch) -> None:
    body = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nmine"
    with answering(body) as proxy:
        monkeypatch.setenv("http_proxy", proxy)
        with wide_client(is_https=False) as client:
            assert client.get("http://nowhere.invalid/").text == "mine"


@pytest.mark.parametrize(
    "headers",
    [
        {"content-length": "4"},
        {},
        {"content-length": "2", "content-encoding": "gzip"},
        {"content-length": "9" * 30},
        {"content-length": "x"},
        {"content-length": "7"},
    ],
    ids=str,
)
def test_a_body_is_what_has_come(headers: dict[str, str]) -> None:
    received = Received(headers)
    for chunk in (b"ab", b"", b"cd"):
        received.add(chunk)
    assert bytes(received.body()) == b"abcd"
