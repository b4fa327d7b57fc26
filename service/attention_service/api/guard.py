"""What guards every answer and every request: security headers, and keys."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from attention_service.api.problems import problem_response
from attention_service.serving.keys import Keys
from attention_wire.problems import Code, ProblemError

# Probes, and documents that hold nothing of anybody: a browser sends no key when it navigates.
_OPEN = frozenset({"/healthz", "/readyz", "/", "/docs", "/docs/oauth2-redirect", "/openapi.json"})
_OPEN_FOLDER = "/docs-assets/"

_OF_ALL = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_OF_DATA = (
    *_OF_ALL,
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
)
# Scripts and styles stand in the pages themselves; nothing comes from elsewhere.
_PAGES_TAKE = (
    b"default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
)
_OF_PAGES = (*_OF_ALL, (b"content-security-policy", _PAGES_TAKE))


def _is_page(path: str) -> bool:
    return path in ("/", "/docs") or path.startswith(_OPEN_FOLDER)


class SecurityHeaders:
    """Tells browsers to take no answer for anything but what it is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        added = _OF_PAGES if _is_page(_own_path(scope)) else _OF_DATA

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *added]
            await send(message)

        await self._app(scope, receive, send_with_headers)


class RequireKey:
    """Lets requests through that carry a key, as `Authorization: Bearer …` (RFC 6750).

    The key's name becomes the caller: callers share the queue.

    Args:
        app: what is guarded.
        keys: the keys.
    """

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        if scope["type"] != "http" or is_open(_own_path(scope)):
            await self._app(scope, receive, send)
            return
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        name = self._keys.name_of(key.strip()) if scheme.lower() == "bearer" else None
        if name is None:
            problem = ProblemError(
                Code.UNAUTHORIZED,
                "This service asks for a key: send Authorization: Bearer and a key of its operator."
                if not key
                else "The key is not known here; ask the operator.",
            )
            await problem_response(problem, Request(scope))(scope, receive, send)
            return
        scope.setdefault("state", {})["caller"] = name
        await self._app(scope, receive, send)


def is_open(path: str) -> bool:
    """Whether a path asks for no key."""
    return path in _OPEN or path.startswith(_OPEN_FOLDER)


def _own_path(scope: Scope) -> str:
    """The path without the prefix of a proxy."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))
