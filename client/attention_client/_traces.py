"""Spans of calls, in an application that traces with OpenTelemetry.

Nothing is imported for them: an application that traces has imported ``opentelemetry`` itself,
and in any other there is nothing to do. Spans hold names, addresses and times, never what a call
asks or what its answer, or an error's message, says.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import urlsplit

from attention_client._messages import Answer, Request
from attention_client.errors import ApiError, AttentionError

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

Watch: TypeAlias = Callable[[Answer | AttentionError], None]
_PORTS = {"http": 80, "https": 443}


@contextmanager
def call_span(request: Request, base_url: str) -> Iterator[Watch]:
    """A span of kind CLIENT, current while one call goes through its attempts.

    An attempt that fails is an event in it. What each attempt meets at the service is a span
    below it, since all of them carry its context.

    Yields:
        What is to be told the outcome of each attempt.
    """
    tracer = _tracer()
    if tracer is None:
        yield _ignore
        return
    from opentelemetry.trace import SpanKind  # noqa: PLC0415

    with tracer.start_as_current_span(
        f"{request.method} {request.route}",
        kind=SpanKind.CLIENT,
        attributes=_address(request, base_url),
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        attempts = _Attempts(span)
        try:
            yield attempts.ended
        except BaseException as error:
            attempts.raised(error)
            raise
        attempts.done()


@contextmanager
def shards_span(shards: int) -> Iterator[None]:
    """A span around the calls of one that is divided among services."""
    tracer = _tracer()
    if tracer is None:
        yield
        return
    with tracer.start_as_current_span(
        "attention over shards",
        attributes={"attention.shards": shards},
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield
        except BaseException as error:
            _mark(span, _name(error))
            raise


def context_headers() -> dict[str, str]:
    """``traceparent`` and its like: they tell the service which span its own belong below."""
    if _tracer() is None:
        return {}
    from opentelemetry import propagate  # noqa: PLC0415

    headers: dict[str, str] = {}
    propagate.inject(headers)
    return headers


class _Attempts:
    """Tells a call's span of its attempts."""

    def __init__(self, span: Span) -> None:
        self._span = span
        self._count = 0
        self._failure: str | None = None

    def ended(self, outcome: Answer | AttentionError) -> None:
        """One attempt has its outcome."""
        self._count += 1
        if self._count > 1:
            self._span.set_attribute("http.request.resend_count", self._count - 1)
        if isinstance(outcome, Answer):
            self._span.set_attribute("http.response.status_code", outcome.status)
            if outcome.request_id is not None:
                self._span.set_attribute("attention.request_id", outcome.request_id)
        self._failure = _failure(outcome)
        if self._failure is not None:
            self._span.add_event(
                "attempt failed",
                {"attention.attempt": self._count, "error.type": self._failure},
            )

    def raised(self, error: BaseException) -> None:
        """The call ends with an error."""
        if isinstance(error, ApiError):
            self._span.set_attribute("attention.problem", error.code)
            _mark(self._span, str(error.status))
        else:
            _mark(self._span, _name(error))

    def done(self) -> None:
        """The call has a result, which a failure may be to it: of `ready`, for one."""
        if self._failure is not None:
            _mark(self._span, self._failure)


def _tracer() -> Tracer | None:
    """None where nobody has loaded OpenTelemetry."""
    if "opentelemetry.trace" not in sys.modules:
        return None
    from opentelemetry import trace  # noqa: PLC0415

    return trace.get_tracer("attention_client", _version())


@cache
def _version() -> str:
    return version("attention-service")


def _ignore(outcome: Answer | AttentionError) -> None:
    """There is no span to tell it."""


def _address(request: Request, base_url: str) -> dict[str, str | int]:
    """Where a call goes, without a user and a password that the address may hold."""
    parts = urlsplit(base_url)
    host = parts.netloc.rpartition("@")[2]
    return {
        "http.request.method": request.method,
        "server.address": parts.hostname or "",
        "server.port": parts.port or _PORTS[parts.scheme],
        "url.full": f"{parts.scheme}://{host}{parts.path}{request.path}",
        "url.template": request.route,
    }


def _failure(outcome: Answer | AttentionError) -> str | None:
    """OpenTelemetry's ``error.type`` of an outcome: the status, or the name of the error."""
    if isinstance(outcome, AttentionError):
        return _name(outcome)
    return str(outcome.status) if outcome.status >= 300 else None


def _name(error: BaseException) -> str:
    return f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")


def _mark(span: Span, failure: str) -> None:
    from opentelemetry.trace import StatusCode  # noqa: PLC0415

    span.set_attribute("error.type", failure)
    span.set_status(StatusCode.ERROR)
