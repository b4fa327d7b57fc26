"""What the tests over HTTP share: a good request, and what every problem looks like."""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

ATTENTION = "/v1/attention"
TEXT = "/v1/text/attention"
JSON = "application/json"
SAFETENSORS = "application/x-safetensors"

# The scores of this call are 1/√2 on the diagonal and 0 beside it.
GOOD: dict[str, Any] = {
    "query": [[1, 0], [0, 1]],
    "key": [[1, 0], [0, 1]],
    "value": [[1, 2], [3, 4]],
}
_SAME, _OTHER = np.exp(2**-0.5) / (np.exp(2**-0.5) + 1), 1 / (np.exp(2**-0.5) + 1)
GOOD_WEIGHTS = np.array([[_SAME, _OTHER], [_OTHER, _SAME]])


class Case(NamedTuple):
    """Fields in place of those of a good request, and the problem that they are.

    Attributes:
        name: as the test's id shows it.
        change: fields that replace or join the good ones; a field that is ``...`` is left out.
        status, code: of the answer.
        field: the one that `errors` names, dotted; "" where none is to blame.
        says: words of the detail, the cure among them.
    """

    name: str
    change: Mapping[str, Any]
    status: int
    code: str
    field: str
    says: tuple[str, ...]

    def fields(self, good: Mapping[str, Any] = GOOD) -> dict[str, Any]:
        changed = {**good, **self.change}
        return {name: value for name, value in changed.items() if value is not ...}


class Caller:
    """Calls one service over connections that stay open."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = httpx.Client(base_url=url, trust_env=False, timeout=30)

    def close(self) -> None:
        self._client.close()

    def ask(self, method: str, path: str, **headers: str) -> httpx.Response:
        return self._client.request(method, path, headers=headers)

    def post(
        self,
        path: str,
        content: bytes | Iterable[bytes] | Mapping[str, Any],
        **headers: str,
    ) -> httpx.Response:
        """Send a body, or fields as JSON; `Content_Type="…"` stands for the header."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        body = json.dumps(content).encode() if isinstance(content, Mapping) else content
        return self._client.post(path, content=body, headers=named)

    def must_serve(self) -> None:
        """The service still gives the right answer to a good request."""
        answer = self.post(ATTENTION, GOOD)
        assert answer.status_code == 200, answer.text
        weights = answer.json()["weights"]
        np.testing.assert_allclose(weights, GOOD_WEIGHTS, atol=1e-6)

    @contextmanager
    def connection(self) -> Iterator[socket.socket]:
        """A bare connection, for what no HTTP client would send."""
        address = urlsplit(self.url)
        with socket.create_connection((address.hostname, address.port), 20) as connection:
            yield connection


def body_of(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors body of a header that may say anything, be it about its own length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    return size.to_bytes(8, "little") + text + data


def fitting_return(detail: str) -> dict[str, Any]:
    """The fields that the detail says would fit."""
    found = re.search(r'(\{"return": .*\}) would fit', detail)
    assert found, detail
    fields: dict[str, Any] = json.loads(found[1])
    return fields


def metric(caller: Caller, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels."""
    text = caller.ask("GET", "/metrics").text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def quiet(caller: Caller, seconds: float = 5) -> bool:
    """Wait until nothing runs and nothing waits."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not metric(caller, "attention_running") + metric(caller, "attention_queue_size"):
            return True
        time.sleep(0.005)
    return False


def until(caller: Caller, name: str, value: float) -> None:
    """Wait until a metric has this value."""
    end = time.monotonic() + 10
    while metric(caller, name) != value:
        assert time.monotonic() < end, f"{name} is not {value}"
        time.sleep(0.005)


def read_answer(connection: socket.socket, method: str = "POST") -> httpx.Response:
    """One answer, read from a bare connection."""
    answer = http.client.HTTPResponse(connection, method=method)
    answer.begin()
    content = answer.read()
    return httpx.Response(answer.status, headers=answer.getheaders(), content=content)


def head(path: str, **headers: object) -> bytes:
    """The head of a POST, for bare connections; `Content_Length=3` stands for the header."""
    lines = [f"POST {path} HTTP/1.1", "Host: test"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def check_problem(
    answer: httpx.Response, status: int, code: str, *fields: str, says: Iterable[str] = ()
) -> dict[str, Any]:
    """That an answer is this problem, in the form that all problems have.

    Args:
        answer: of the service.
        status: of HTTP.
        code: the stable word.
        fields: the ones to blame, dotted, in order.
        says: words that the detail holds.

    Returns:
        The problem.
    """
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert set(problem) == {"type", "title", "status", "detail", "code", "request_id", "errors"}
    assert problem["status"] == status
    assert problem["code"] == code, problem
    assert problem["type"] == f"urn:attention-service:problem:{code}"
    words = problem["title"].replace("JSON", "json").replace("-", " ").replace(" ", "_")
    assert words[:1].isupper()
    assert words.lower() == code
    assert problem["request_id"] == answer.headers["X-Request-ID"]
    assert [".".join(map(str, error["loc"])) for error in problem["errors"]] == list(fields)
    assert all(error["msg"] for error in problem["errors"])
    for words in says:
        assert words in problem["detail"], problem["detail"]
    return problem
