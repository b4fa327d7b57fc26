"""Answers: the form they take, the headers they carry, and what ids they are known by."""

from __future__ import annotations

import base64
import json
import re
import time
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from safetensors.numpy import load, save

from tests.api.support import (
    ATTENTION,
    GOOD,
    JSON,
    SAFETENSORS,
    TEXT,
    Caller,
    body_of,
    check_problem,
    head,
    read_answer,
)

MODULE = "/v1/modules/example/attention"
CALLS: dict[str, dict[str, Any]] = {
    ATTENTION: GOOD,
    MODULE: {"query": [[[0.5] * 8, [0.25] * 8]]},
    TEXT: {"text": "The cat sat.", "layers": [0], "heads": [0, 1]},
}


def in_safetensors(fields: dict[str, Any]) -> bytes:
    """The same request with its tensors in binary."""
    tensors = {name: np.array(v, np.float32) for name, v in fields.items() if name in GOOD}
    rest = {name: value for name, value in fields.items() if name not in tensors}
    if not tensors:
        return body_of({"__metadata__": {"request": json.dumps(rest)}})
    return save(tensors, {"request": json.dumps(rest)})


# --- Form ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CALLS)
@pytest.mark.parametrize(
    ("sent", "accept", "answered"),
    [
        (JSON, None, JSON),
        (JSON, "*/*", JSON),
        (JSON, SAFETENSORS, SAFETENSORS),
        (JSON, f"{JSON};q=0.1, {SAFETENSORS.upper()};q=0.2", SAFETENSORS),
        (JSON, f"{JSON};q=0, {SAFETENSORS};q=0.1", SAFETENSORS),
        (JSON, f"text/html, {SAFETENSORS};q=0.1, */*;q=0.1", SAFETENSORS),
        (JSON, f"{SAFETENSORS}, {JSON}", JSON),
        (JSON, f"{SAFETENSORS};q=high", JSON),
        (JSON, "image/png", JSON),
        (SAFETENSORS, None, SAFETENSORS),
        (SAFETENSORS, "*/*", SAFETENSORS),
        (SAFETENSORS, JSON, JSON),
        (SAFETENSORS, f"{JSON}, */*;q=0.5", JSON),
        (SAFETENSORS, ", ;;, q=1", SAFETENSORS),
    ],
)
def test_the_form_is_that_of_the_request_unless_accept_says_otherwise(
    caller: Caller, path: str, sent: str, accept: str | None, answered: str
) -> None:
    fields = CALLS[path]
    body = json.dumps(fields).encode() if sent == JSON else in_safetensors(fields)
    headers = {"Accept": accept} if accept is not None else {}
    with caller.connection() as connection:  # httpx would send an Accept of its own
        connection.sendall(
            head(path, Content_Type=sent, Content_Length=len(body), **headers) + body
        )
        answer = read_answer(connection)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == answered
    assert answer.headers["Content-Length"] == str(len(answer.content))
    if answered == JSON:
        assert answer.json()["provider"] == "CPUExecutionProvider"
    else:
        assert all(np.isfinite(array).all() for array in load(answer.content).values())


@pytest.mark.parametrize("path", CALLS)
def test_every_form_carries_the_same_numbers(caller: Caller, path: str) -> None:
    """To the last bit: JSON has as many digits as it takes to read a float32 back."""
    listed = caller.post(path, CALLS[path]).json()
    encoded = caller.post(path, CALLS[path] | {"tensor_format": "base64"}).json()
    binary = load(caller.post(path, CALLS[path], Accept=SAFETENSORS).content)
    parts = [("", listed, encoded)]
    if path == TEXT:
        parts = [("results.0.", listed["results"][0], encoded["results"][0])]
    for prefix, lists, objects in parts:
        for name in ("output", "weights"):
            array = np.array(lists[name], np.float32)
            np.testing.assert_array_equal(array, binary[prefix + name])
            assert objects[name]["dtype"] == "float32"
            assert tuple(objects[name]["shape"]) == array.shape
            assert np.array_equal(array, decoded(objects[name]["data"], array.shape))


def decoded(data: str, shape: tuple[int, ...]) -> Any:
    return np.frombuffer(base64.b64decode(data, validate=True), "<f4").reshape(shape)


@pytest.mark.parametrize("accept", [SAFETENSORS, "text/html", JSON])
def test_problems_are_json_whatever_accept_says(caller: Caller, accept: str) -> None:
    answer = caller.post(ATTENTION, {}, Accept=accept)
    check_problem(answer, 422, "missing_field", "query", "key", "value")
    answer = caller.post(ATTENTION, b"", Accept=accept, Content_Type=SAFETENSORS)
    check_problem(answer, 400, "malformed_tensor")


def test_what_is_not_asked_for_is_absent(caller: Caller) -> None:
    for path, fields in CALLS.items():
        for wanted, others in (("output", "weights"), ("weights", "output")):
            answer = caller.post(path, fields | {"return": {others: False}}).json()
            result = answer["results"][0] if path == TEXT else answer
            assert wanted in result
            assert others not in result
            assert ("module" in answer) == (path != ATTENTION)


# --- Headers ---------------------------------------------------------------------------


@pytest.mark.parametrize("path", CALLS)
def test_every_computed_answer_says_what_its_time_went_into(caller: Caller, path: str) -> None:
    begin = time.perf_counter()
    answer = caller.post(path, CALLS[path])
    whole = (time.perf_counter() - begin) * 1e3
    parts = [part.strip().split(";dur=") for part in answer.headers["Server-Timing"].split(",")]
    assert [name for name, _ in parts] == ["parse", "queue", "compute", "serialize"]
    milliseconds = [float(duration) for _, duration in parts]
    assert all(duration >= 0 for duration in milliseconds)
    assert 0 < sum(milliseconds) <= whole
    assert answer.headers["X-Attention-Provider"] == "CPUExecutionProvider"


def test_long_work_shows_in_compute(caller: Caller) -> None:
    query = np.random.default_rng(0).standard_normal((1, 8, 2048, 64), np.float32)
    answer = caller.post(
        ATTENTION,
        save(
            {"query": query, "key": query, "value": query},
            {"request": '{"return": {"weights": false}}'},
        ),
        Content_Type=SAFETENSORS,
    )
    assert answer.status_code == 200, answer.text
    times = dict(re.findall(r"(\w+);dur=([\d.]+)", answer.headers["Server-Timing"]))
    assert float(times["compute"]) > 1  # ms, of some 9 GFLOP
    assert float(times["compute"]) > float(times["queue"])


@pytest.mark.parametrize("given", ["a", "0" * 128, "4f9c-17:x/y", "~!@#$%^&*(){}<>\"'\\"])
def test_an_id_of_the_callers_own_is_echoed(caller: Caller, given: str) -> None:
    for answer in (
        caller.post(ATTENTION, GOOD, X_Request_ID=given),
        caller.ask("GET", "/v1/info", **{"X-Request-ID": given}),
        caller.ask("GET", "/nothing", **{"X-Request-ID": given}),
        caller.ask("DELETE", "/v1/info", **{"X-Request-ID": given}),
    ):
        assert answer.headers.get_list("X-Request-ID") == [given]
        if answer.status_code >= 400:
            assert answer.json()["request_id"] == given


@pytest.mark.parametrize(
    "given",
    [b"", b" ", b"0" * 129, b"two words", b"a\tb", b"caf\xc3\xa9", b"\xff", b"x" * 9000],
    ids=lambda given: repr(given)[:20],
)
def test_a_hostile_id_is_replaced(caller: Caller, given: bytes) -> None:
    with caller.connection() as connection:
        start = head(ATTENTION, Content_Length=2)[:-2] + b"X-Request-ID: " + given
        connection.sendall(start + b"\r\n\r\n{}")
        answer = read_answer(connection)
    check_problem(answer, 422, "missing_field", "query", "key", "value")
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-ID"])


def test_two_ids_are_not_both_echoed(caller: Caller) -> None:
    with caller.connection() as connection:
        connection.sendall(head("/v1/info", X_Request_ID="a\r\nX-Request-ID: b", Content_Length=0))
        answer = read_answer(connection)
    assert len(answer.headers.get_list("X-Request-ID")) == 1


def test_an_id_is_made_for_each_call(caller: Caller) -> None:
    ids = {caller.post(ATTENTION, GOOD).headers["X-Request-ID"] for _ in range(5)}
    assert len(ids) == 5
    assert all(re.fullmatch("[0-9a-f]{32}", made) for made in ids)


# --- Metrics ---------------------------------------------------------------------------


def samples(caller: Caller) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What `/metrics` tells, read by Prometheus' own client: (name, labels) → value."""
    answer = caller.ask("GET", "/metrics")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_calls_are_counted_by_route_status_and_code(caller: Caller) -> None:
    def counted(route: str, status: str, code: str) -> float:
        labels = (("code", code), ("route", route), ("status", status))
        return samples(caller).get(("attention_requests_total", labels), 0)

    route = "/v1/modules/{name}/attention"
    for name, fields, status, code in (
        ("example", CALLS[MODULE], "200", ""),
        ("example", {}, "422", "missing_field"),
        ("no-such", CALLS[MODULE], "404", "unknown_module"),
    ):
        before = counted(route, status, code)
        answer = caller.post(f"/v1/modules/{name}/attention", fields)
        assert answer.status_code == int(status)
        assert counted(route, status, code) == before + 1
