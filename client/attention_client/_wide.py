"""Connections that read in large pieces.

httpx reads 64 KiB at a time, whatever has come, and hands each of them through half a dozen
layers: of an answer of many megabytes that is a third of the time that the whole call takes. How
much is read is up to the network backend of httpcore, which httpx is built on, and which takes
one of ours.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.request import getproxies

import httpcore
import httpx
from typing_extensions import override

_READ_BYTES = 2**20
# As httpx has them.
_MOST_CONNECTIONS, _MOST_IDLE, _IDLE_SECONDS = 100, 20, 5.0

_NAMES = (
    *("ConnectTimeout", "ReadTimeout", "WriteTimeout", "PoolTimeout"),
    *("ConnectError", "ReadError", "WriteError", "ProxyError", "UnsupportedProtocol"),
    *("LocalProtocolError", "RemoteProtocolError"),
)
_MEANINGS: dict[type[Exception], type[httpx.TransportError]] = {
    getattr(httpcore, name): getattr(httpx, name) for name in _NAMES
}


def wide_client(*, is_https: bool) -> httpx.Client:
    """A client as httpx makes it, but for how much it reads.

    Args:
        is_https: whether it will need certificates.
    """
    if getproxies():
        return httpx.Client()  # which knows how to go by them
    context = httpx.create_ssl_context() if is_https else None
    return httpx.Client(transport=_Transport(context))


class _Transport(httpx.BaseTransport):
    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._pool = httpcore.ConnectionPool(
            ssl_context=context,
            max_connections=_MOST_CONNECTIONS,
            max_keepalive_connections=_MOST_IDLE,
            keepalive_expiry=_IDLE_SECONDS,
            network_backend=_Backend(),
        )

    @override
    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        target = httpcore.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
        )
        with _errors_mapped():
            response = self._pool.handle_request(
                httpcore.Request(
                    request.method,
                    target,
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        return httpx.Response(
            response.status,
            headers=response.headers,
            stream=_Stream(response),
            extensions=response.extensions,
        )

    @override
    def close(self) -> None:
        self._pool.close()


class _Stream(httpx.SyncByteStream):
    """The body of an answer."""

    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    @override
    def __iter__(self) -> Iterator[bytes]:
        with _errors_mapped():
            yield from self._response.iter_stream()

    @override
    def close(self) -> None:
        self._response.close()


class _Backend(httpcore.SyncBackend):
    @override
    def connect_tcp(self, *args: Any, **kwargs: Any) -> httpcore.NetworkStream:
        return _Connection(super().connect_tcp(*args, **kwargs))


class _Connection(httpcore.NetworkStream):
    """A connection that reads more at once than it is asked for, if it can."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    @override
    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max(max_bytes, _READ_BYTES), timeout)

    @override
    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, timeout)

    @override
    def close(self) -> None:
        self._stream.close()

    @override
    def start_tls(self, *args: Any, **kwargs: Any) -> httpcore.NetworkStream:
        return _Connection(self._stream.start_tls(*args, **kwargs))

    @override
    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


@contextmanager
def _errors_mapped() -> Iterator[None]:
    """Raises httpx's errors in the place of httpcore's."""
    try:
        yield
    except tuple(_MEANINGS) as error:
        kind = next(ours for theirs, ours in _MEANINGS.items() if isinstance(error, theirs))
        raise kind(str(error)) from error
