"""Between the server and the routes: paths, methods, and an end for bodies that nobody read.

Plain ASGI, so that a body goes through untouched.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from attention_service.api.scopes import header, own_path

logger = logging.getLogger(__name__)

_DRAIN_SECONDS = 1.0
_DRAIN_BYTES = 64 * 2**20


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
        if not _has_body(scope):
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
                if (header(scope, b"expect") or "").lower() != "100-continue":
                    await _drain(receive_body, lambda: unread)
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        await self._app(scope, receive_body, send_closing)


class ShortCut:
    """Takes calls of known paths to where they are answered, past the framework's routing.

    The routes know them too, for whatever else is sent to their paths.
    """

    def __init__(self, app: ASGIApp, endpoints: Mapping[str, ASGIApp]) -> None:
        self._app = app
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        app = self._app
        if scope["type"] == "http" and scope["method"] == "POST":
            app = self._endpoints.get(own_path(scope), app)
        await app(scope, receive, send)


def _has_body(scope: Scope) -> bool:
    if scope["type"] != "http":
        return False
    length = header(scope, b"content-length")
    return length not in (None, "0") or header(scope, b"transfer-encoding") is not None


async def _drain(receive: Receive, unread: Callable[[], bool]) -> None:
    left = _DRAIN_BYTES
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            while unread() and left > 0:
                left -= len((await receive()).get("body", b""))
    except TimeoutError:
        return  # the caller is slower than we wait
