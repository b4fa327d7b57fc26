"""Security headers: what tells browsers to take an answer for nothing but what it is."""

from __future__ import annotations

from attention_service.api.page_files import PATH

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
# The page's scripts and styles are files of its own, so that text in it can never be one; its
# images are drawn by itself.
_PAGE_TAKES = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    b"connect-src 'self'; font-src 'self'; object-src 'none'; base-uri 'none'; "
    b"form-action 'none'; frame-ancestors 'none'"
)
_OF_PAGE = (*_OF_ALL, (b"content-security-policy", _PAGE_TAKES))
# Scripts and styles stand in the documentation itself; nothing comes from elsewhere.
_DOCS_TAKE = (
    b"default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
)
_OF_DOCS = (*_OF_ALL, (b"content-security-policy", _DOCS_TAKE))


def security_headers(path: str) -> tuple[tuple[bytes, bytes], ...]:
    """Those of an answer at a path."""
    if path == "/" or path.startswith(PATH):
        return _OF_PAGE
    return _OF_DOCS if path == "/docs" or path.startswith(_ASSETS) else _OF_DATA
