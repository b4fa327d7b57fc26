"""Who may call: those who send a key, where the operator asks for keys."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from attention_service.api.page_files import PATH
from attention_service.api.problems import problem_response
from attention_service.api.scopes import own_path
from attention_service.serving.keys import Keys
from attention_wire.problems import Code, ProblemError

# Probes, and documents that hold nothing of anybody: a browser sends no key when it navigates.
_OPEN = frozenset(
    {
        *("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"),
        *("/", "/docs", "/docs/oauth2-redirect", "/openapi.json"),
    }
)
_OPEN_FOLDERS = ("/docs-assets/", PATH)


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
        if scope["type"] != "http" or is_open(own_path(scope)):
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
    return path in _OPEN or path.startswith(_OPEN_FOLDERS)
