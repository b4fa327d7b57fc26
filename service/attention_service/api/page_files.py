"""The files of the page at `/`: read once, and answered with their checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from fastapi import APIRouter, Request, Response

_FOLDER = Path(__file__).with_name("page")
INDEX = "index.html"
PATH = "/page/"
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class PageFile(NamedTuple):
    """One file of the page.

    Attributes:
        content: its bytes.
        media_type: for `Content-Type`.
        etag: a quoted checksum of the content (RFC 9110, section 8.8.3).
    """

    content: bytes
    media_type: str
    etag: str


def page_files(folder: Path = _FOLDER) -> dict[str, PageFile]:
    """All files of the page by name; what has no media type of a page is none of them."""
    return {
        path.name: _read(path)
        for path in sorted(folder.iterdir())
        if path.suffix in _MEDIA_TYPES and path.is_file()
    }


def page_routes() -> APIRouter:
    """The page at `/` and each of its files at `/page/NAME`; other names have no route."""
    router = APIRouter()
    for name, file in page_files().items():
        path = "/" if name == INDEX else PATH + name
        router.add_api_route(path, _endpoint(file), include_in_schema=False)
    return router


def _read(path: Path) -> PageFile:
    content = path.read_bytes()
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    return PageFile(content, _MEDIA_TYPES[path.suffix], etag)


def _endpoint(file: PageFile) -> Callable[[Request], Awaitable[Response]]:
    # A browser asks each time whether its copy is the newest: the files have no versions in
    # their names, and modules of two versions do not fit together.
    headers = {"ETag": file.etag, "Cache-Control": "no-cache"}

    async def answer(request: Request) -> Response:
        if _has(request.headers.get("If-None-Match", ""), file.etag):
            return Response(status_code=304, headers=headers)
        return Response(file.content, headers={**headers, "Content-Type": file.media_type})

    return answer


def _has(if_none_match: str, etag: str) -> bool:
    """Whether a caller's copies include this one, by the weak comparison of RFC 9110, 13.1.2."""
    tags = (tag.strip().removeprefix("W/") for tag in if_none_match.split(","))
    return any(tag in ("*", etag) for tag in tags)
