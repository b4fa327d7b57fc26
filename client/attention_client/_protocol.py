"""The protocol without I/O: requests to send, answers to read, repetitions to decide.

A :class:`Call` says what to ask and how to read the answer. An :class:`Exchange` carries
one call through its attempts; it is driven by a client, which does nothing but send,
receive and sleep::

    exchange = Exchange(call, policy)
    while isinstance(verdict := exchange.judge(send(exchange.attempt())), Pause):
        sleep(verdict.seconds)
    return verdict.value

Attention is stateless, so each call is safe to repeat.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Generic, TypeAlias, TypeVar

from pydantic import ValidationError

from attention_client.errors import (
    ApiError,
    AttentionError,
    ConnectionFailedError,
    DeadlineExceededError,
    api_error,
)
from attention_wire import bodies
from attention_wire.bodies import Body
from attention_wire.problems import ProblemDetails
from attention_wire.tensors import Buffer

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

RETRIED_STATUSES = frozenset({408, 429, 502, 503, 504})
"""Statuses of passing troubles. A 500 is a fault that a repeat would only meet again."""

FIRST_DELAY = 0.5
LONGEST_DELAY = 8.0
PIECE_BYTES = 256 * 2**10


@dataclass(frozen=True)
class Policy:
    """How long and how often a call is tried.

    Attributes:
        timeout: seconds for a call with all its repetitions; ``math.inf`` for no end.
        max_retries: how often a failed attempt is repeated.
        clock: a clock that only goes forward, in seconds.
        now: the time of day, in seconds since 1970, for ``Retry-After`` dates.
        random: numbers of [0, 1), for the jitter of delays.
    """

    timeout: float = 60.0
    max_retries: int = 2
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    now: Callable[[], float] = field(default=time.time, repr=False)
    random: Callable[[], float] = field(default=random.random, repr=False)


# --- What goes out ---------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """One HTTP request, without the service's address.

    Attributes:
        method: the HTTP method.
        path: absolute, escaped, without a prefix.
        accept: the media type that the answer should have.
        body: what to send, if anything.
    """

    method: str
    path: str
    accept: str
    body: Body | None = None

    @property
    def headers(self) -> dict[str, str]:
        """The headers that belong to this request whoever sends it."""
        headers = {"Accept": self.accept}
        if self.body is not None:
            headers["Content-Type"] = self.body.media_type
            headers["Content-Length"] = str(self.body_bytes)
        return headers

    @property
    def body_bytes(self) -> int:
        """The length of the body."""
        return sum(map(len, self.body.buffers)) if self.body is not None else 0


@dataclass(frozen=True)
class Attempt:
    """A request that is to be sent now, and how long its answer is waited for."""

    request: Request
    timeout: float
    left: Callable[[], float]

    @property
    def headers(self) -> dict[str, str]:
        """The request's headers, with the time that is left for the service to answer."""
        left = self.left()
        if math.isinf(left):
            return self.request.headers
        return {**self.request.headers, "X-Request-Timeout": f"{max(left, 0.001):.3f}"}

    def check(self) -> None:
        """Raises:
        DeadlineExceededError: no time is left.
        """
        if self.left() <= 0:
            raise self.too_late()

    def too_late(self) -> DeadlineExceededError:
        """The error for an answer that did not come in time."""
        return DeadlineExceededError(f"no answer within {self.timeout:g} s")

    def pieces(self) -> Iterator[bytes]:
        """The body in pieces; between them the deadline is looked at.

        Raises:
            DeadlineExceededError: no time is left to send the next one.
        """
        for buffer in self.request.body.buffers if self.request.body else ():
            view = memoryview(buffer)
            for start in range(0, len(view), PIECE_BYTES):
                self.check()
                yield bytes(view[start : start + PIECE_BYTES])


# --- What comes back -------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """An HTTP answer, whole.

    Attributes:
        status: the HTTP status.
        headers: names in lower case.
        body: decoded of any Content-Encoding.
    """

    status: int
    headers: Mapping[str, str]
    body: Buffer

    @property
    def media_type(self) -> str:
        """The content type without its parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def request_id(self) -> str | None:
        """What the service's logs call this request."""
        return self.headers.get("x-request-id")


@dataclass(frozen=True)
class Call(Generic[T_co]):
    """What to ask the service, and what its answer means.

    Attributes:
        request: what is sent.
        parse: makes the result of a good answer.
        timeout: seconds, in place of the client's own timeout.
        recover: makes a result of an error, or raises it. Such a call is never repeated.
    """

    request: Request
    parse: Callable[[Answer], T_co]
    timeout: float | None = None
    recover: Callable[[AttentionError], T_co] | None = None


@dataclass(frozen=True)
class Done(Generic[T_co]):
    """The exchange is over."""

    value: T_co


@dataclass(frozen=True)
class Pause:
    """The exchange goes on after so many seconds, with a new attempt."""

    seconds: float


Outcome: TypeAlias = Answer | AttentionError


class Exchange(Generic[T]):
    """One call on its way through its attempts.

    Args:
        call: what is asked.
        policy: how long and how often.
    """

    def __init__(self, call: Call[T], policy: Policy) -> None:
        self._call = call
        self._policy = policy
        self._timeout = policy.timeout if call.timeout is None else call.timeout
        self._deadline = policy.clock() + self._timeout
        self._attempts = 0

    def left(self) -> float:
        """Seconds until the deadline."""
        return self._deadline - self._policy.clock()

    def attempt(self) -> Attempt:
        """What to send now."""
        self._attempts += 1
        return Attempt(self._call.request, self._timeout, self.left)

    def judge(self, outcome: Outcome) -> Done[T] | Pause:
        """Decide what an attempt's outcome means.

        Raises:
            AttentionError: the outcome is an error that is not worth a repeat, or for which
                no attempt or no time is left.
        """
        if isinstance(outcome, Answer) and outcome.status < 300:
            return Done(self._call.parse(outcome))
        error = error_of(outcome, self._policy.now()) if isinstance(outcome, Answer) else outcome
        if self._call.recover is not None:
            return Done(self._call.recover(error))
        delay = retry_delay(error, self._attempts, self.left(), self._policy)
        if delay is not None:
            return Pause(delay)
        if self._attempts > 1:
            error.add_note(f"({self._attempts} attempts)")
        raise error


def retry_delay(
    error: AttentionError, attempts: int, left: float, policy: Policy
) -> float | None:
    """Seconds to wait before the next attempt, or None to give up.

    The delay is drawn from 0 to a bound that doubles from 0.5 to 8 s, and is never shorter
    than what the service asked for.

    Args:
        error: why the last attempt failed.
        attempts: how many there have been.
        left: seconds until the deadline.
        policy: the number of retries, and the source of jitter.
    """
    if attempts > policy.max_retries or not _is_passing(error):
        return None
    bound = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(attempts - 1, 8))
    asked = error.retry_after if isinstance(error, ApiError) else None
    delay = max(policy.random() * bound, asked or 0.0)
    return delay if delay < left else None


def _is_passing(error: AttentionError) -> bool:
    if isinstance(error, ApiError):
        return error.status in RETRIED_STATUSES
    return isinstance(error, ConnectionFailedError)


# --- Errors and headers ----------------------------------------------------------------


def error_of(answer: Answer, now: float) -> ApiError:
    """The error that an answer stands for, whoever wrote it."""
    problem = _problem(answer) or _foreign_problem(answer)
    known = {
        "status": answer.status,  # a proxy may have replaced it
        "request_id": problem.request_id or answer.request_id,
    }
    retry_after = parse_retry_after(answer.headers.get("retry-after"), now)
    return api_error(problem.model_copy(update=known), retry_after)


def _problem(answer: Answer) -> ProblemDetails | None:
    if answer.media_type not in {bodies.PROBLEM, bodies.JSON}:
        return None
    try:
        return ProblemDetails.model_validate_json(bytes(answer.body))
    except ValidationError:
        return None


def _foreign_problem(answer: Answer) -> ProblemDetails:
    """A problem for an answer of something else on the way, such as a proxy."""
    try:
        title = HTTPStatus(answer.status).phrase
    except ValueError:
        title = "Unknown status"
    if answer.status < 400:
        place = answer.headers.get("location", "nowhere")
        detail = f"{title}: redirected to {place}; give the address of the service itself"
    else:
        start = bytes(answer.body[:400]).decode("utf-8", "replace")
        shown = " ".join(start.split())[:200]
        kind = answer.media_type or "no content type"
        detail = f"{title}; the answer ({kind}) is no problem document: {shown!r}"
    return ProblemDetails(
        type="about:blank", title=title, status=answer.status, detail=detail, code="unknown"
    )


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Seconds of a ``Retry-After`` header, a number or a date; None if it says nothing.

    Args:
        value: the header.
        now: the time of day, in seconds since 1970.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - now
        except ValueError:
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def parse_server_timing(value: str) -> dict[str, float]:
    """Phase → milliseconds of a ``Server-Timing`` header; what has no duration is left out."""
    timing = {}
    for entry in value.split(","):
        name, *parameters = (part.strip() for part in entry.split(";"))
        for parameter in parameters:
            key, _, text = parameter.partition("=")
            try:
                milliseconds = float(text.strip().strip('"'))
            except ValueError:
                continue
            if key.strip().lower() == "dur" and name:
                timing[name] = milliseconds
    return timing
