"""Where httpx is spoken to: what it is given, and what its errors mean."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypedDict

import httpx

from attention_client._protocol import PIECE_BYTES, Attempt
from attention_client._settings import Settings
from attention_client._traces import context_headers
from attention_client.errors import (
    AttentionError,
    ConfigurationError,
    ConnectionFailedError,
    DeadlineExceededError,
    InvalidAnswerError,
)

CONNECT_TIMEOUT = 5.0
"""Seconds that one attempt may take to connect, so that a dead host leaves time for others."""

# The first class that an error is an instance of says what it means.
FOREIGN: tuple[tuple[type[Exception], type[AttentionError]], ...] = (
    (httpx.ConnectTimeout, ConnectionFailedError),
    (httpx.TimeoutException, DeadlineExceededError),
    (httpx.UnsupportedProtocol, ConfigurationError),
    (httpx.LocalProtocolError, ConfigurationError),  # a header that cannot be sent
    (httpx.InvalidURL, ConfigurationError),
    (httpx.DecodingError, InvalidAnswerError),
    (httpx.TooManyRedirects, InvalidAnswerError),
    (httpx.RequestError, ConnectionFailedError),
)


class Arguments(TypedDict):
    """What both kinds of httpx clients take to open a stream, but for the content."""

    method: str
    url: str
    headers: dict[str, str]
    timeout: httpx.Timeout


def arguments(settings: Settings, attempt: Attempt) -> Arguments:
    """An attempt as httpx takes it."""
    left = max(attempt.left(), 0.001)
    limit = None if math.isinf(left) else left
    return Arguments(
        method=attempt.request.method,
        url=settings.base_url + attempt.request.path,
        headers={**settings.headers, **attempt.headers, **context_headers()},
        timeout=httpx.Timeout(limit, connect=min(left, CONNECT_TIMEOUT)),
    )


def small_content(attempt: Attempt) -> bytes | None:
    """A body that is sent in one piece, being small; None if it is not."""
    body = attempt.request.body
    if body is None:
        return b""
    return bytes(body) if attempt.request.body_bytes <= PIECE_BYTES else None


@contextmanager
def errors_mapped(settings: Settings, attempt: Attempt) -> Iterator[None]:
    """Raises this package's errors in the place of httpx's."""
    try:
        yield
    except (httpx.RequestError, httpx.InvalidURL) as error:
        raise meaning(error, settings, attempt) from error


def meaning(error: Exception, settings: Settings, attempt: Attempt) -> AttentionError:
    """What an error of httpx means to a caller."""
    kind = next(ours for theirs, ours in FOREIGN if isinstance(error, theirs))
    if kind is DeadlineExceededError:
        return attempt.too_late()
    reason = str(error) or type(error).__name__
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        reason += "; is the service running, and is this its address?"
    return kind(f"{attempt.request.method} {settings.base_url}{attempt.request.path}: {reason}")
