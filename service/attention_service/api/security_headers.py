"""Security headers: what tells browsers to take an answer for nothing but what it is."""

from __future__ import annotations

_ASSETS = "/docs-assets/"

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


def security_headers(path: str) -> tuple[tuple[bytes, bytes], ...]:
    """Those of an answer at a path."""
    is_page = path in ("/", "/docs") or path.startswith(_ASSETS)
    return _OF_PAGES if is_page else _OF_DATA
