"""The errors: total over statuses and over httpx's own, and readable."""

from __future__ import annotations

import json
import pickle
import re

import httpx
import pytest

from attention_client import (
    ApiError,
    AttentionClient,
    AttentionError,
    ConfigurationError,
    ConnectionFailedError,
    DeadlineExceededError,
    InvalidRequestError,
    NotFoundError,
    ServerError,
    ServiceDeadlineError,
    UnavailableError,
    errors,
)
from attention_client._messages import Answer, Request, error_of
from attention_client._protocol import Call, Exchange
from attention_client._settings import Settings
from attention_client._transport import meaning
from attention_client.errors import BY_STATUS
from attention_service.api.problems import STATUS
from tests.client.conftest import Ask
from tests.client.scripted import Reply, ScriptedServer

PROBLEM = b"""{"type": "urn:attention-service:problem:invalid_tensor", "title": "Invalid tensor",
"status": 422, "detail": "key and value do not fit", "code": "invalid_tensor",
"request_id": "r-1", "errors": [{"loc": ["key"], "msg": "has shape [2, 3]"},
{"loc": ["return", "weights", 0], "msg": "is not {known}"}]}"""


def problem(status: int, body: bytes = PROBLEM, **headers: str) -> ApiError:
    named = {"content-type": "application/problem+json"}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    return error_of(Answer(status, named, body), now=0.0)


def test_every_status_of_the_service_has_its_class() -> None:
    assert set(BY_STATUS) == {status.value for status in STATUS.values()} - {500}
    # As the module's own tree tells it.
    tree = dict(re.findall(r"─ (\w+) +(\d{3}):", errors.__doc__ or ""))
    assert {kind.__name__: str(status) for status, kind in BY_STATUS.items()} == tree


@pytest.mark.parametrize(
    ("status", "kind"),
    [(500, ServerError), (502, ServerError), (599, ServerError), (418, ApiError), (302, ApiError)],
)
def test_other_statuses_have_the_class_of_their_kind(status: int, kind: type[ApiError]) -> None:
    assert type(problem(status)) is kind


def test_the_deadline_of_the_service_is_a_deadline() -> None:
    assert isinstance(problem(504), ServiceDeadlineError)
    assert issubclass(ServiceDeadlineError, DeadlineExceededError)
    assert issubclass(ServiceDeadlineError, ServerError)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    """Each class stands in the drawing, deeper than each of its parents that stand above."""
    drawn = [
        (match.start(1), match[1])
        for line in (errors.__doc__ or "").splitlines()
        if (match := re.match(r"^[ │├└─]*(\w+Error)\s", line))
    ]
    found: set[tuple[str, str]] = set()
    path: list[tuple[int, str]] = []
    for indent, name in drawn:
        while path and path[-1][0] >= indent:
            path.pop()
        found |= {(name, path[-1][1])} if path else set()
        path.append((indent, name))
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    ours = [kind for kind in classes if issubclass(kind, AttentionError)]
    assert found == {
        (kind.__name__, base.__name__)
        for kind in ours
        for base in kind.__bases__
        if issubclass(base, AttentionError)
    }


def test_an_error_says_it_all() -> None:
    error = problem(422, retry_after="3")
    assert isinstance(error, InvalidRequestError)
    assert (error.status, error.code, error.title) == (422, "invalid_tensor", "Invalid tensor")
    assert (error.request_id, error.retry_after) == ("r-1", 3.0)
    assert [item.loc for item in error.errors] == [("key",), ("return", "weights", 0)]
    assert str(error) == (
        "422 invalid_tensor: key and value do not fit\n"
        "  key: has shape [2, 3]\n"
        "  return.weights.0: is not {known}\n"
        "  (request r-1)"
    )


@pytest.mark.parametrize("detail", ["has shape [2]", "key: has shape [2]"])
def test_a_problem_is_told_once(detail: str) -> None:
    fields = [{"loc": ["key"], "msg": "has shape [2]"}]
    body = json.dumps({**json.loads(PROBLEM), "detail": detail, "errors": fields}).encode()
    assert str(problem(422, body)) == f"422 invalid_tensor: {detail}\n  (request r-1)"


def test_errors_can_be_sent_between_processes() -> None:
    error = pickle.loads(pickle.dumps(problem(503, retry_after="3")))
    assert isinstance(error, UnavailableError)
    assert (str(error), error.retry_after) == (str(problem(503)), 3.0)


@pytest.mark.parametrize(
    ("status", "kind", "body", "words"),
    [
        (502, "text/html", b"<html>\n <h1>Bad  gateway</h1>", "<html> <h1>Bad gateway</h1>"),
        (503, "application/json", b'{"error": "gone"}', "gone"),
        (500, "", b"\xff\xfe", "no content type"),
        (499, "text/plain", b"", "Unknown status"),
        (413, "application/problem+json", b"{broken", "{broken"),
    ],
)
def test_answers_of_something_on_the_way(status: int, kind: str, body: bytes, words: str) -> None:
    error = problem(status, body, content_type=kind, x_request_id="p-1")
    assert error.status == status
    assert error.code == "unknown"
    assert error.request_id == "p-1"
    assert words in str(error)


def test_a_redirection_names_its_place() -> None:
    error = problem(308, b"", content_type="", location="https://there/")
    assert "redirected to https://there/" in str(error)


def subclasses(kind: type[Exception]) -> set[type[Exception]]:
    return {kind}.union(*(subclasses(below) for below in kind.__subclasses__()))


def meaning_of(error: Exception) -> AttentionError:
    settings = Settings.resolve("http://host/p", None, 60.0, 2)
    call = Call(Request("GET", "/readyz", "application/json"), lambda answer: answer)
    return meaning(error, settings, Exchange(call, settings.policy).attempt())


@pytest.mark.parametrize("kind", sorted(subclasses(httpx.RequestError), key=lambda k: k.__name__))
def test_every_error_of_httpx_has_a_meaning(kind: type[httpx.RequestError]) -> None:
    error = meaning_of(kind("why"))
    assert isinstance(error, DeadlineExceededError) or "why" in str(error)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (httpx.ConnectError("refused"), ConnectionFailedError, "GET http://host/p/readyz: refused"),
        (httpx.ConnectError("refused"), ConnectionFailedError, "; is the service running, and is"),
        (httpx.ConnectTimeout("timed out"), ConnectionFailedError, "timed out; is the service"),
        (httpx.ReadError(""), ConnectionFailedError, "ReadError"),
        (httpx.ReadTimeout("x"), DeadlineExceededError, "no answer within 60 s"),
        (httpx.PoolTimeout("x"), DeadlineExceededError, "no answer within 60 s"),
        (httpx.InvalidURL("bad"), ConfigurationError, "bad"),
    ],
)
def test_meanings(error: Exception, kind: type[AttentionError], words: str) -> None:
    mapped = meaning_of(error)
    assert type(mapped) is kind
    assert words in str(mapped)


def test_errors_of_the_real_service(client: AttentionClient) -> None:
    with pytest.raises(NotFoundError, match="404 unknown_module") as missing:
        client.module("no-such-module")
    assert missing.value.request_id
    with pytest.raises(InvalidRequestError) as misfit:
        client.attention([[1.0, 2.0]], [[1.0]], [[1.0]])
    assert misfit.value.errors[0].loc == ("key",)
    assert "[1, 1]" in str(misfit.value)
    assert "[1, 2]" in str(misfit.value)


@pytest.mark.parametrize("status", [*BY_STATUS, 500, 502])
def test_every_status_over_http(ask: Ask, server: ScriptedServer, status: int) -> None:
    server.script = [Reply(status, PROBLEM, "application/problem+json")]
    with pytest.raises(BY_STATUS.get(status, ServerError)) as caught:
        ask(server.url, "info", settings={"max_retries": 0})
    assert caught.value.status == status
    assert caught.value.code == "invalid_tensor"
