"""Calls that take too long, bodies that come too slowly, callers who hang up."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from attention_service.serving.admission import Admission
from attention_service.settings import Settings
from tests.api.support import (
    ATTENTION,
    GOOD,
    SAFETENSORS,
    Caller,
    check_problem,
    head,
    metric,
    quiet,
    read_answer,
    until,
)
from tests.conftest import RunningService


@pytest.fixture(scope="module")
def impatient_url(start_service: Callable[[Settings], RunningService]) -> str:
    settings = Settings(
        modules="/nonexistent",
        provider="cpu",
        threads=2,  # or a long call would not be long
        max_running=1,
        max_waiting=2,
        body_timeout=0.5,
        max_timeout=20,
    )
    return start_service(settings).url


@pytest.fixture
def impatient(impatient_url: str) -> Iterator[Caller]:
    """Calls a service with a place for one large call and two that wait; then none is left."""
    caller = Caller(impatient_url)
    yield caller
    assert quiet(caller)
    caller.must_serve()
    caller.close()


def send(connection: socket.socket, body: bytes, **headers: str) -> None:
    start = head(ATTENTION, Content_Type=SAFETENSORS, Content_Length=len(body), **headers)
    connection.sendall(start + body)


def test_a_call_past_its_deadline_ends_between_two_tiles(
    impatient: Caller, long_call: bytes
) -> None:
    started = time.monotonic()
    answer = impatient.post(ATTENTION, long_call, Content_Type=SAFETENSORS, X_Request_Timeout="0.4")
    took = time.monotonic() - started
    check_problem(answer, 504, "deadline", says=["after 0.4 s", "up to 20"])
    assert 0.4 < took < 1.2
    counted = metric(impatient, "attention_requests_total", status="504", code="deadline")
    assert counted >= 1


def test_a_deadline_holds_in_the_queue_too(impatient: Caller, long_call: bytes) -> None:
    with impatient.connection() as first, impatient.connection() as second:
        send(first, long_call)
        until(impatient, "attention_running", 1)
        send(second, long_call, X_Request_Timeout="0.5")
        check_problem(read_answer(second), 504, "deadline", says=["after 0.5 s"])
        assert metric(impatient, "attention_queue_size") == 0
        assert metric(impatient, "attention_running") == 1


def test_a_deadline_of_the_body_holds_in_the_queue_too(impatient: Caller, long_call: bytes) -> None:
    tensor = np.zeros((1, 8, 2048, 64), np.float32)
    inputs = [
        {
            "name": name,
            "shape": tensor.shape,
            "datatype": "FP32",
            "parameters": {"binary_data_size": tensor.nbytes},
        }
        for name in ("query", "key", "value")
    ]
    more = {"outputs": [{"name": "lse"}], "parameters": {"timeout": 500_000}}
    fields = json.dumps({"inputs": inputs, **more}).encode()
    content = fields + 3 * tensor.tobytes()
    with impatient.connection() as first:
        send(first, long_call)
        until(impatient, "attention_running", 1)
        headers = {"Inference_Header_Content_Length": str(len(fields))}
        answer = impatient.post("/v2/models/sdpa/infer", content, **headers)
        assert answer.status_code == 504
        assert "after 0.5 s" in answer.json()["error"]
        assert metric(impatient, "attention_running") == 1  # the first, which still computes


def test_a_deadline_holds_for_a_call_of_a_form_that_is_known(
    impatient: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor = np.ones((1, 4, 64, 64), np.float32)
    body = save({"query": tensor, "key": tensor, "value": tensor})
    for _ in range(3):  # the first in full
        assert impatient.post(ATTENTION, body, Content_Type=SAFETENSORS).status_code == 200

    async def run(_: Admission, work: Callable[[], Any]) -> Any:
        await asyncio.sleep(5)
        return work()

    with monkeypatch.context() as patched:
        patched.setattr(Admission, "run", run)
        answer = impatient.post(ATTENTION, body, Content_Type=SAFETENSORS, X_Request_Timeout="0.3")
    check_problem(answer, 504, "deadline", says=["after 0.3 s"])


@pytest.mark.parametrize("given", ["0", "-1", "nan", "-inf", "soon", ""])
def test_a_timeout_is_a_number_of_seconds(impatient: Caller, given: str) -> None:
    answer = impatient.post(ATTENTION, GOOD, X_Request_Timeout=given)
    check_problem(answer, 422, "invalid_field", "X-Request-Timeout", says=["number of seconds"])


def test_a_generous_timeout_is_cut_to_that_of_the_service(impatient: Caller) -> None:
    for given in ("1e9", "inf"):
        assert impatient.post(ATTENTION, GOOD, X_Request_Timeout=given).status_code == 200


def test_a_caller_who_hangs_up_frees_the_place_at_once(impatient: Caller, long_call: bytes) -> None:
    before = metric(impatient, "attention_requests_total", status="499", code="caller_gone")
    with impatient.connection() as connection:
        send(connection, long_call)
        until(impatient, "attention_running", 1)
    started = time.monotonic()
    assert quiet(impatient)
    assert time.monotonic() - started < 0.5
    after = metric(impatient, "attention_requests_total", status="499", code="caller_gone")
    assert after == before + 1


def test_one_who_hangs_up_in_the_queue_leaves_it(impatient: Caller, long_call: bytes) -> None:
    with impatient.connection() as running:
        send(running, long_call)
        until(impatient, "attention_running", 1)
        with impatient.connection() as waiting:
            send(waiting, long_call)
            until(impatient, "attention_queue_size", 1)
        until(impatient, "attention_queue_size", 0)
        assert metric(impatient, "attention_running") == 1


def test_many_who_hang_up_leave_nothing_behind(impatient: Caller) -> None:
    body = save(
        {name: np.ones((1, 1, 2048, 64), np.float32) for name in ("query", "key", "value")},
        metadata={"request": '{"return": {"entropy": true, "output": false, "weights": false}}'},
    )

    def hang_up(after: float) -> None:
        with impatient.connection() as connection:
            send(connection, body)
            time.sleep(after)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(hang_up, np.linspace(0, 0.05, 60)))
    assert quiet(impatient)


def test_a_small_call_passes_a_large_one(impatient: Caller, long_call: bytes) -> None:
    with impatient.connection() as connection:
        send(connection, long_call)
        until(impatient, "attention_running", 1)
        for _ in range(20):
            started = time.monotonic()
            impatient.must_serve()
            assert time.monotonic() - started < 0.5
        assert metric(impatient, "attention_running") == 1  # it still computes


def test_a_full_queue_is_told_before_the_body_is_read(impatient: Caller, long_call: bytes) -> None:
    # One runs, and one caller's part of the queue is one call.
    with impatient.connection() as running, impatient.connection() as waiting:
        send(running, long_call)
        until(impatient, "attention_running", 1)
        send(waiting, long_call)
        until(impatient, "attention_queue_size", 1)
        with impatient.connection() as third:
            third.sendall(head(ATTENTION, Content_Type=SAFETENSORS, Content_Length=len(long_call)))
            answer = read_answer(third)  # not a byte of the body was sent
        check_problem(answer, 429, "queue_full", says=["Retry-After"])
        assert int(answer.headers["Retry-After"]) >= 1
        assert answer.headers["Connection"] == "close"


def trickle(connection: socket.socket, content: bytes, pause: float) -> None:
    for index in range(len(content)):
        try:
            connection.sendall(content[index : index + 1])
        except OSError:
            return  # the other side has had enough
        time.sleep(pause)


@pytest.mark.parametrize("headers", [{"Content_Length": 100}, {"Transfer_Encoding": "chunked"}])
def test_a_body_that_trickles_in_is_given_up(impatient: Caller, headers: dict[str, Any]) -> None:
    with impatient.connection() as connection, ThreadPoolExecutor(1) as pool:
        connection.sendall(head(ATTENTION, **headers))
        started = time.monotonic()
        pool.submit(trickle, connection, b"4\r\n{   \r\n" * 10, 0.05)
        answer = read_answer(connection)
        assert 0.4 < time.monotonic() - started < 1.5  # it would take 5
    check_problem(answer, 408, "body_timeout", says=["bytes after 0.5 s", "Send it again"])


def test_a_body_that_pauses_but_comes_is_read(impatient: Caller) -> None:
    content = b'{"query": [[1]], "key": [[1]], "value": [[3]]}'
    with impatient.connection() as connection:
        connection.sendall(head(ATTENTION, Content_Length=len(content)) + content[:10])
        time.sleep(0.3)
        connection.sendall(content[10:])
        answer = read_answer(connection)
    assert answer.status_code == 200
    assert answer.json()["output"] == [[3]]


def test_an_answer_that_nobody_takes_is_given_up(
    impatient: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attention_service.api.answers.SLOW_SECONDS", 0.3)
    monkeypatch.setattr("attention_service.api.answers.SLOW_BYTES", 2**40)
    tensors = {name: np.ones((1, 4, 1500, 8), np.float32) for name in ("query", "key", "value")}
    body = save(tensors, metadata={"request": "{}"})  # 36 MB of weights
    before = metric(impatient, "attention_requests_total", status="499", code="caller_gone")
    with impatient.connection() as connection:
        send(connection, body)
        end = time.monotonic() + 10
        counted = before
        while counted == before and time.monotonic() < end:
            time.sleep(0.05)
            counted = metric(
                impatient, "attention_requests_total", status="499", code="caller_gone"
            )
    assert counted == before + 1
