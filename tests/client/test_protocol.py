"""The protocol without I/O: requests, repetitions, headers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import repeat
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load

from attention_client import (
    ApiError,
    AttentionError,
    AttentionResult,
    ConnectionFailedError,
    DeadlineExceededError,
    InvalidAnswerError,
    Return,
    UnavailableError,
    _calls,
    _fields,
)
from attention_client._messages import (
    Answer,
    Request,
    error_of,
    parse_retry_after,
    parse_server_timing,
)
from attention_client._protocol import (
    PIECE_BYTES,
    Call,
    Done,
    Exchange,
    Pause,
    Policy,
    retry_delay,
)
from attention_client._transport import small_content
from attention_wire import bodies

DEFAULTS: dict[str, Any] = {
    "attn_mask": None,
    "is_causal": False,
    "scale": None,
    "return_": None,
    "timeout": None,
}
TEXT: dict[str, Any] = {
    "module": None,
    "layers": "all",
    "heads": "all",
    "truncate": False,
    "return_": None,
    "timeout": None,
}


class FakeClock:
    """A clock that stands still unless it is moved."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def body_of(request: Request) -> bytes:
    assert request.body is not None
    return bytes(request.body)


def metadata_of(body: bytes) -> dict[str, Any]:
    length = int.from_bytes(body[:8], "little")
    fields: dict[str, Any] = json.loads(json.loads(body[8 : 8 + length])["__metadata__"]["request"])
    return fields


def attention(*tensors: Any, **options: Any) -> Call[AttentionResult]:
    query, key, value = tensors
    return _calls.attention(_fields.of_attention(query, key, value, options), None)


# --- Requests --------------------------------------------------------------------------


def test_tensors_go_as_safetensors_that_the_format_s_own_library_reads() -> None:
    query = np.arange(6, dtype=np.float16).reshape(2, 3)
    options = {"attn_mask": [[True, False]] * 2, "scale": 0.25, "is_causal": True}
    call = attention(query, [[1, 2, 3]] * 2, np.ones((2, 1)), **options)
    request = call.request
    assert (request.method, request.path) == ("POST", "/v1/attention")
    assert request.headers == {
        "Accept": "application/x-safetensors",
        "Content-Type": "application/x-safetensors",
        "Content-Length": str(len(body_of(request))),
    }
    tensors = load(body_of(request))
    assert {name: array.dtype.name for name, array in tensors.items()} == {
        "query": "float16",
        "key": "float32",
        "value": "float64",
        "attn_mask": "bool",
    }
    np.testing.assert_array_equal(tensors["query"], query)
    np.testing.assert_array_equal(tensors["key"], [[1, 2, 3]] * 2)
    assert metadata_of(body_of(request)) == {"scale": 0.25, "is_causal": True}


def test_what_was_not_given_is_not_sent() -> None:
    call = attention([[1.0]], [[1.0]], [[1.0]])
    assert metadata_of(body_of(call.request)) == {}
    assert set(load(body_of(call.request))) == {"query", "key", "value"}


def test_numpy_s_numbers_are_numbers() -> None:
    options = {"scale": np.float32(0.5), "return_": {"weights": np.bool_(False)}}
    heads = {"q_num_heads": np.int64(2), "kv_num_heads": 1}
    call = attention([[[1.0, 2.0]]], [[[1.0]]], [[[1.0]]], **options, **heads)
    assert metadata_of(body_of(call.request)) == {
        "scale": 0.5,
        "q_num_heads": 2,
        "kv_num_heads": 1,
        "return": {"weights": False},
    }


@pytest.mark.parametrize("return_", [{"weights": False}, Return(weights=False)])
def test_return_is_a_mapping_or_its_model(return_: Any) -> None:
    call = _calls.module_attention("m", [[[1.0]]], None, None, **{**DEFAULTS, "return_": return_})
    assert metadata_of(body_of(call.request)) == {"return": {"weights": False}}


def test_text_goes_as_json() -> None:
    options = {**TEXT, "module": "m", "layers": np.array([5, 0]), "heads": range(2)}
    call = _calls.text_attention(("a", "b"), None, **options)
    assert call.request.headers["Content-Type"] == "application/json"
    assert call.request.headers["Accept"] == "application/x-safetensors"
    assert json.loads(body_of(call.request)) == {
        "text": ["a", "b"],
        "module": "m",
        "layers": [5, 0],
        "heads": [0, 1],
    }


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("mha", "/v1/modules/mha/attention"),
        ("a/b c?", "/v1/modules/a%2Fb%20c%3F/attention"),
        ("注意", "/v1/modules/%E6%B3%A8%E6%84%8F/attention"),
    ],
)
def test_module_names_are_escaped(name: str, path: str) -> None:
    call = _calls.module_attention(name, [[[1.0]]], None, None, **DEFAULTS)
    assert call.request.path == path


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_names_that_would_change_the_path_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no name of a module"):
        _calls.module(name)


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_a_scale_that_json_cannot_say_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        attention([[1.0]], [[1.0]], [[1.0]], scale=scale)


def test_a_large_body_goes_in_pieces_while_there_is_time() -> None:
    clock = FakeClock()
    array = np.arange(PIECE_BYTES, dtype=np.float32).reshape(1, -1)
    call = attention(array, array, array)
    attempt = Exchange(call, Policy(timeout=10, clock=clock)).attempt()
    assert small_content(attempt) is None
    pieces = list(attempt.pieces())
    assert b"".join(pieces) == body_of(call.request)
    assert max(map(len, pieces)) == PIECE_BYTES

    rest = attempt.pieces()
    next(rest)
    clock.seconds += 10
    with pytest.raises(DeadlineExceededError, match="within 10 s"):
        next(rest)


def test_a_small_body_goes_in_one_piece() -> None:
    call = attention([[1.0]], [[1.0]], [[1.0]])
    assert small_content(Exchange(call, Policy()).attempt()) == body_of(call.request)


# --- Answers ---------------------------------------------------------------------------

# Written by the format's own library.
RECORDED_ANSWER = (
    b"\xc8\x00\x00\x00\x00\x00\x00\x00"
    b'{"__metadata__":{"response":"{\\"provider\\":\\"CPUExecutionProvide'
    b'r\\"}"},"output":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4'
    b']},"weights":{"dtype":"F32","shape":[1,2],"data_offsets":[4,12]}'
    b"}       "
    b"\x00\x00\xa0@\x00\x00\x80>\x00\x00@?"
)


def test_a_recorded_answer() -> None:
    call = attention([[1.0]], [[1.0]] * 2, [[5.0]] * 2)
    headers = {
        "content-type": "application/x-safetensors",
        "x-request-id": "abc",
        "server-timing": "parse;dur=0.25, compute;dur=3",
    }
    result = call.parse(Answer(200, headers, RECORDED_ANSWER))
    np.testing.assert_array_equal(result.output, [[5]])
    np.testing.assert_array_equal(result.weights, [[0.25, 0.75]])
    assert (result.module, result.provider) == (None, "CPUExecutionProvider")
    assert result.request_id == "abc"
    assert result.server_timing == {"parse": 0.25, "compute": 3.0}
    assert not result.weights.flags.writeable


def test_fields_of_newer_services_do_not_disturb() -> None:
    body = bodies.write(bodies.JSON, {"provider": "p", "lse": [1.0], "news": 1}, "response")
    call = attention([[1.0]], [[1.0]], [[1.0]])
    result = call.parse(
        Answer(200, {"content-type": "application/json; charset=utf-8"}, bytes(body))
    )
    assert result.provider == "p"


@pytest.mark.parametrize(
    ("kind", "body", "message"),
    [
        ("text/html", b"<html>", "text/html where"),
        ("", b"", "no content type where"),
        ("application/json", b"{", "not valid JSON"),
        ("application/json", b"{}", "provider: is missing"),
        ("application/x-safetensors", RECORDED_ANSWER[:-1], "cannot be read"),
    ],
)
def test_an_answer_that_is_not_the_service_s(kind: str, body: bytes, message: str) -> None:
    call = attention([[1.0]], [[1.0]], [[1.0]])
    with pytest.raises(InvalidAnswerError, match=message):
        call.parse(Answer(200, {"content-type": kind}, body))


def test_too_few_results_are_noticed() -> None:
    body = bodies.write(bodies.JSON, {"module": "m", "provider": "p", "results": []}, "response")
    call = _calls.text_attention(["a"], None, **TEXT)
    with pytest.raises(InvalidAnswerError, match="0 results for 1 texts"):
        call.parse(Answer(200, {"content-type": "application/json"}, bytes(body)))


# --- Repetitions -----------------------------------------------------------------------


def failure(status: int, **headers: str) -> ApiError:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return error_of(Answer(status, named, b""), now=0.0)


@pytest.mark.parametrize(
    ("status", "repeated"),
    [(408, True), (429, True), (502, True), (503, True), (504, True)]
    + [(status, False) for status in (301, 400, 401, 404, 405, 413, 415, 422, 500, 501)],
)
def test_which_statuses_are_repeated(status: int, repeated: bool) -> None:
    assert (retry_delay(failure(status), 1, 60, Policy()) is not None) == repeated


@pytest.mark.parametrize(
    ("error", "repeated"),
    [
        (ConnectionFailedError("refused"), True),
        (DeadlineExceededError("late"), False),
        (InvalidAnswerError("html"), False),
    ],
)
def test_which_failures_are_repeated(error: AttentionError, repeated: bool) -> None:
    assert (retry_delay(error, 1, 60, Policy()) is not None) == repeated


def test_delays_double_up_to_eight_seconds_under_full_jitter() -> None:
    longest = Policy(max_retries=100, random=lambda: 1.0)
    half = replace(longest, random=lambda: 0.5)
    assert [retry_delay(failure(503), n, math.inf, longest) for n in range(1, 7)] == [
        0.5, 1, 2, 4, 8, 8,
    ]  # fmt: skip
    assert retry_delay(failure(503), 3, math.inf, half) == 1
    assert retry_delay(failure(503), 100, math.inf, half) == 4


def test_retry_after_is_the_least_wait() -> None:
    policy = Policy(random=lambda: 1.0)
    assert retry_delay(failure(429, retry_after="7"), 1, 60, policy) == 7
    assert retry_delay(failure(429, retry_after="0"), 1, 60, policy) == 0.5
    date = "Thu, 01 Jan 1970 00:00:09 GMT"
    assert retry_delay(failure(503, retry_after=date), 1, 60, policy) == 9


def test_no_wait_goes_past_the_deadline() -> None:
    policy = Policy(random=lambda: 1.0)
    assert retry_delay(failure(503), 1, 0.6, policy) == 0.5
    assert retry_delay(failure(503), 1, 0.5, policy) is None
    assert retry_delay(failure(503, retry_after="60"), 1, 59, policy) is None


@pytest.mark.parametrize("retries", [0, 1, 2])
def test_the_number_of_retries(retries: int) -> None:
    policy = Policy(max_retries=retries)
    tries = [retry_delay(failure(503), n, 60, policy) is not None for n in range(1, 5)]
    assert tries == [n <= retries for n in range(1, 5)]


# --- Exchanges -------------------------------------------------------------------------

REQUEST = Request("GET", "/v1/info", "application/json")
CALL = Call(REQUEST, lambda answer: answer.status)
BUSY = Answer(503, {"retry-after": "2"}, b"")


def test_an_exchange_tells_the_service_what_time_is_left() -> None:
    clock = FakeClock()
    exchange = Exchange(CALL, Policy(timeout=10, clock=clock, random=lambda: 1.0))
    assert exchange.attempt().headers["X-Request-Timeout"] == "10.000"
    clock.seconds += 1.5
    assert exchange.judge(BUSY) == Pause(2.0)
    clock.seconds += 2
    attempt = exchange.attempt()
    assert attempt.headers["X-Request-Timeout"] == "6.500"
    assert exchange.judge(Answer(200, {}, b"")) == Done(200)


def test_an_exchange_gives_up_with_the_last_error() -> None:
    exchange = Exchange(CALL, Policy(clock=FakeClock(), random=lambda: 0.0))
    exchange.attempt()
    assert exchange.judge(ConnectionFailedError("refused")) == Pause(0.0)
    exchange.attempt()
    assert exchange.judge(BUSY) == Pause(2.0)
    exchange.attempt()
    with pytest.raises(UnavailableError) as caught:
        exchange.judge(BUSY)
    assert caught.value.__notes__ == ["(3 attempts)"]


def test_an_error_is_raised_at_once_if_the_wait_would_pass_the_deadline() -> None:
    clock = FakeClock()
    exchange = Exchange(CALL, Policy(timeout=3, clock=clock))
    exchange.attempt()
    clock.seconds += 1
    with pytest.raises(UnavailableError):
        exchange.judge(BUSY)


def test_a_call_s_own_timeout_counts() -> None:
    exchange = Exchange(replace(CALL, timeout=3.0), Policy(clock=FakeClock()))
    assert exchange.attempt().headers["X-Request-Timeout"] == "3.000"


def test_without_an_end_no_timeout_is_sent() -> None:
    attempt = Exchange(CALL, Policy(timeout=math.inf)).attempt()
    assert attempt.headers == {"Accept": "application/json"}
    attempt.check()


def test_readiness_is_no_matter_of_repetition() -> None:
    for outcome in (BUSY, Answer(502, {}, b""), ConnectionFailedError("refused")):
        assert Exchange(_calls.ready(), Policy()).judge(outcome) == Done(value=False)
    with pytest.raises(ApiError):
        Exchange(_calls.ready(), Policy()).judge(Answer(404, {}, b""))


# --- Headers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("3", 3.0),
        ("0.5", 0.5),
        ("-1", 0.0),
        ("soon", None),
        ("nan", None),
        ("Thu, 01 Jan 1970 00:02:00 GMT", 20.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, now=100.0) == seconds


@pytest.mark.parametrize(
    ("value", "timing"),
    [
        ("", {}),
        (
            "parse;dur=0.25, queue;dur=0, compute;dur=1e2",
            {"parse": 0.25, "queue": 0, "compute": 100},
        ),
        ('cache;desc="hit", db; DUR = "5.5"', {"db": 5.5}),
        ("a;dur=x, ;dur=1", {}),
    ],
)
def test_server_timing(value: str, timing: dict[str, float]) -> None:
    assert parse_server_timing(value) == timing


def tries_until_given_up(policy: Policy, clock: FakeClock, outcomes: Iterable[Answer]) -> int:
    """How many attempts there are, the clock moved on by what is waited."""
    exchange = Exchange(CALL, policy)
    for tries, outcome in enumerate(outcomes, 1):
        exchange.attempt()
        try:
            pause = exchange.judge(outcome)
        except ApiError:
            return tries
        assert isinstance(pause, Pause)
        clock.seconds += pause.seconds
    raise AssertionError("it never gave up")


@pytest.mark.parametrize(("retries", "attempts"), [(0, 1), (1, 14), (2, 15)])
def test_a_full_queue_is_no_failure(retries: int, attempts: int) -> None:
    """Twelve times turned away, then as many failures as are borne, and one more."""
    clock = FakeClock()
    policy = Policy(timeout=180, max_retries=retries, clock=clock, random=lambda: 0.0)
    full, down = Answer(429, {"retry-after": "1"}, b""), Answer(503, {}, b"")
    assert tries_until_given_up(policy, clock, [full] * 12 + [down] * 9) == attempts


def test_a_queue_that_stays_full_ends_with_the_timeout() -> None:
    clock = FakeClock()
    policy = Policy(timeout=180, clock=clock, random=lambda: 0.0)
    full = Answer(429, {"retry-after": "10"}, b"")
    assert tries_until_given_up(policy, clock, repeat(full)) == 18
