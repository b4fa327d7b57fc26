"""What a request's scope says, for those who look at it before the routes do."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

_PROBES = frozenset({"/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})


def own_path(scope: MutableMapping[str, Any]) -> str:
    """The path without the prefix of a proxy."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def is_probe(scope: MutableMapping[str, Any]) -> bool:
    """Whether a request is one of those that ask every second whether the service is well."""
    return own_path(scope) in _PROBES


def header(scope: MutableMapping[str, Any], name: bytes) -> str | None:
    """The first header of that name, which is in lower case."""
    for given, value in scope["headers"]:
        if given == name:
            return str(value, "latin-1")
    return None
