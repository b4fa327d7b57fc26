"""What holds for every request: an id, a line in the log, and an end for bodies nobody read.

Plain ASGI, so that a body goes through untouched.
"""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Callable, MutableMapping
from time import perf_counter
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from attention_service.api.traces import name_request, trace_of_request
from attention_service.serving.lifecycle import Lifecycle

logger = logging.getLogger(__name__)

_PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_DRAIN_SECONDS = 1.0
_DRAIN_BYTES = 64 * 2**20


def is_probe(scope: MutableMapping[str, Any]) -> bool:
    """Whether a request is one of those that ask every second whether the service is well."""
    return scope["path"] in _PROBES


class RequestId:
    """Echoes `X-Request-ID`, or makes one; it stands in the scope's state, the log and the trace.

    A line of the log names the request and its answer, never what they hold. Probes are logged at
    the level of debugging.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        name_request(request_id, scope["query_string"])

        started = perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            level = logging.DEBUG if is_probe(scope) else logging.INFO
            if logger.isEnabledFor(level):
                _log(level, scope, status, perf_counter() - started)


def _log(level: int, scope: Scope, status: int, seconds: float) -> None:
    state = scope["state"]
    fields = {
        "method": scope["method"],
        "path": scope["raw_path"].decode("latin-1"),  # still escaped: no line can be forged
        "status": status,
        "duration_ms": round(seconds * 1e3, 3),
        "request_id": state["request_id"],
    }
    line = "%(method)s %(path)s %(status)d %(duration_ms).1f ms %(request_id)s"
    client = scope["client"]
    known = {"caller": state.get("caller") or (client[0] if client else ""), **trace_of_request()}
    logger.log(level, line, fields, extra={**fields, **known})


class CloseLeaving:
    """Closes connections with their next answer, once this process is about to end.

    Whoever keeps one alive then asks elsewhere, and finds no connection closed under a request.
    """

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle) -> None:
        self._app = app
        self._lifecycle = lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""

        async def send_closing(message: Message) -> None:
            if message["type"] == "http.response.start" and self._lifecycle.is_leaving:
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self._app(scope, receive, send_closing if scope["type"] == "http" else send)


class HeadAsGet:
    """Answers HEAD as GET, whose body the server then leaves out (RFC 9110, section 9.3.2)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)


class RootPath:
    """Tells the app which prefix of its paths a proxy takes off, for the links that it writes.

    ASGI's `path` begins with its `root_path`, so what was taken off is put back.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        if self._root_path and scope["type"] == "http":
            path: str = scope["path"]
            if not path.startswith(f"{self._root_path}/"):  # or the proxy left it on
                path = self._root_path + path
            scope = {**scope, "root_path": self._root_path, "path": path}
        await self._app(scope, receive, send)


class CloseUnread:
    """Closes the connection after an answer that was sent before the body was read.

    The rest of the body is read and thrown away for a moment first: a connection that is
    closed with unread bytes is reset, and the caller would lose the answer.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
            await self._app(scope, receive, send)
            return
        unread, closing = True, False

        async def receive_body() -> Message:
            nonlocal unread
            message = await receive()
            unread = bool(message.get("more_body", False))
            return message

        async def send_closing(message: Message) -> None:
            nonlocal closing
            if message["type"] == "http.response.start" and unread:
                closing = True
                MutableHeaders(scope=message)["Connection"] = "close"
            elif closing and not message.get("more_body", False):
                await send({**message, "more_body": True})
                # A caller that waits for "100 Continue" has sent nothing to be thrown away.
                if headers.get("expect", "").lower() != "100-continue":
                    await _drain(receive_body, lambda: unread)
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        await self._app(scope, receive_body, send_closing)


async def _drain(receive: Receive, unread: Callable[[], bool]) -> None:
    left = _DRAIN_BYTES
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            while unread() and left > 0:
                left -= len((await receive()).get("body", b""))
    except TimeoutError:
        return  # the caller is slower than we wait
