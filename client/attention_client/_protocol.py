"""The protocol without I/O: what to send when, and what an answer means for the call.

A :class:`Call` says what to ask and how to read the answer. An :class:`Exchange` carries
one call through its attempts; it is driven by a client, which does nothing but send,
receive and sleep::

    exchange = Exchange(call, policy)
    while True:
        verdict = exchange.judge(send(exchange.attempt()))
        if isinstance(verdict, Done):
            return verdict.value
        sleep(verdict.seconds)

Attention is stateless, so each call is safe to repeat.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeAlias, TypeVar

from attention_client._messages import Answer, Request, error_of
from attention_client.errors import (
    ApiError,
    AttentionError,
    ConnectionFailedError,
    DeadlineExceededError,
    OverloadedError,
)

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
        max_retries: how often a failed attempt is repeated. One that a full queue turned away
            has not failed: unless this is 0, it is repeated until the timeout.
        clock: a clock that only goes forward, in seconds.
        now: the time of day, in seconds since 1970, for ``Retry-After`` dates.
        random: numbers of [0, 1), for the jitter of delays.
    """

    timeout: float = 60.0
    max_retries: int = 2
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    now: Callable[[], float] = field(default=time.time, repr=False)
    random: Callable[[], float] = field(default=random.random, repr=False)


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
        """Go on only in time.

        Raises:
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
        self._turned_away = 0

    @property
    def request(self) -> Request:
        """What is asked, in each attempt."""
        return self._call.request

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
        if isinstance(error, OverloadedError) and self._policy.max_retries > 0:
            self._turned_away += 1
        delay = retry_delay(
            error, self._attempts, self.left(), self._policy, turned_away=self._turned_away
        )
        if delay is not None:
            return Pause(delay)
        if self._attempts > 1:
            error.add_note(f"({self._attempts} attempts)")
        raise error


def retry_delay(
    error: AttentionError, attempts: int, left: float, policy: Policy, *, turned_away: int = 0
) -> float | None:
    """Seconds to wait before the next attempt, or None to give up.

    The delay is drawn from 0 to a bound that doubles from 0.5 to 8 s, and is never shorter
    than what the service asked for.

    Args:
        error: why the last attempt failed.
        attempts: how many there have been.
        left: seconds until the deadline.
        policy: the number of retries, and the source of jitter.
        turned_away: how many of them met a full queue, which is no failure.
    """
    if attempts - turned_away > policy.max_retries or not _is_passing(error):
        return None
    bound = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(attempts - 1, 8))
    asked = error.retry_after if isinstance(error, ApiError) else None
    delay = max(policy.random() * bound, asked or 0.0)
    return delay if delay < left else None


def _is_passing(error: AttentionError) -> bool:
    if isinstance(error, ApiError):
        return error.status in RETRIED_STATUSES
    return isinstance(error, ConnectionFailedError)
