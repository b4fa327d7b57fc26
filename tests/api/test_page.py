"""The page at `/` and its files: what is served and kept, and what a browser may do with it."""

from __future__ import annotations

import asyncio
import hashlib
import re
from pathlib import Path

import httpx
import pytest

from attention_service.api.app import create_app
from attention_service.api.page_files import page_files
from attention_service.settings import Settings
from tests.api.support import Caller, check_problem

FOLDER = Path(__file__).parents[2] / "service/attention_service/api/page"
NAMES = sorted(path.name for path in FOLDER.iterdir() if path.name != "index.html")
MEDIA_TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data: blob:",
    "connect-src": "'self'",
    "font-src": "'self'",
    "object-src": "'none'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
IMPORT = re.compile(r"""(?:\bfrom\s+|\bimport\s*\(?\s*)["']([^"']+)["']""")


def read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_each_file_is_served_as_what_it_is(caller: Caller, name: str) -> None:
    answer = caller.ask("GET", f"/page/{name}")
    content = (FOLDER / name).read_bytes()
    assert answer.status_code == 200
    assert answer.content == content
    assert answer.headers["Content-Type"] == MEDIA_TYPES[Path(name).suffix]
    assert answer.headers["Cache-Control"] == "no-cache"
    assert answer.headers["ETag"] == f'"{hashlib.sha256(content).hexdigest()[:32]}"'


@pytest.mark.parametrize("path", ["/", "/page/main.js"])
def test_a_copy_that_is_the_newest_is_not_sent_again(caller: Caller, path: str) -> None:
    etag = caller.ask("GET", path).headers["ETag"]
    for has in (etag, f"W/{etag}", f'"another", {etag}', "*"):
        answer = caller.ask("GET", path, **{"If-None-Match": has})
        assert (answer.status_code, answer.content) == (304, b""), has
        assert (answer.headers["ETag"], answer.headers["Cache-Control"]) == (etag, "no-cache")
    for has in ('"another"', etag[1:-1], ""):
        assert caller.ask("GET", path, **{"If-None-Match": has}).status_code == 200, has


@pytest.mark.parametrize("path", ["/", "/page/main.js", "/page/style.css"])
def test_the_page_runs_no_script_but_its_files(caller: Caller, path: str) -> None:
    policy = caller.ask("GET", path).headers["Content-Security-Policy"]
    told = (part.strip().partition(" ") for part in policy.split(";"))
    assert {name: sources for name, _, sources in told} == POLICY


@pytest.mark.parametrize(
    "path",
    ["/page", "/page/", "/page/index.html", "/page/nothing.js",
     "/page/%2e%2e/page_files.py", "/page/..%2fpage_files.py", "/page/main.js/"],
)  # fmt: skip
def test_nothing_else_is_served(caller: Caller, path: str) -> None:
    check_problem(caller.ask("GET", path), 404, "not_found")


def test_files_are_got_and_not_posted(caller: Caller) -> None:
    get, bare = caller.ask("GET", "/page/main.js"), caller.ask("HEAD", "/page/main.js")
    assert (bare.content, bare.headers["ETag"]) == (b"", get.headers["ETag"])
    answer = caller.ask("POST", "/page/main.js")
    check_problem(answer, 405, "method_not_allowed")
    assert answer.headers["Allow"] == "GET, HEAD"


def test_the_files_are_those_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "a.js").write_text("1;")
    (tmp_path / "notes.txt").write_text("not of the page")
    (tmp_path / "folder.js").mkdir()
    files = page_files(tmp_path)
    assert list(files) == ["a.js"]
    assert (files["a.js"].content, files["a.js"].media_type) == (b"1;", MEDIA_TYPES[".js"])
    (tmp_path / "a.js").write_text("2;")
    assert page_files(tmp_path)["a.js"].etag != files["a.js"].etag


def test_html_has_no_script_and_no_style_of_its_own() -> None:
    html = read("index.html")
    assert re.findall(r"<script[^>]*>(.*?)</script>", html, re.DOTALL) == [""]
    assert "<style" not in html
    assert not re.search(r"\s(style|on\w+)=", html)


@pytest.mark.parametrize("name", ["index.html", *NAMES])
def test_nothing_comes_from_elsewhere_and_no_path_is_absolute(name: str) -> None:
    text = read(name)
    sources = re.findall(r"""(?:src|href)=["']([^"']+)["']""", text)
    sources += re.findall(r"""url\(["']?([^"')]+)""", text)
    if name.endswith(".js"):
        sources += IMPORT.findall(text)
        code = re.sub(r"(?m)^\s*(//|/?\*).*$|\s//\s.*$", "", text)
        assert not re.search(
            r"\b(innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval)\b", code
        )
    for source in sources:
        assert not re.match(r"[a-z]+:|/", source), source  # another origin, or a root path is lost


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith(".js")])
def test_modules_import_what_is_there_and_are_short(name: str) -> None:
    text = read(name)
    assert {source.removeprefix("./") for source in IMPORT.findall(text)} <= set(NAMES)
    assert text.startswith("// ")  # what it is about
    assert len(text.splitlines()) < 250


def test_behind_a_proxy_the_files_are_found_under_its_path() -> None:
    app = create_app(Settings(provider="cpu", root_path="/behind/proxy"))

    async def ask(path: str) -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get(path)

    page = asyncio.run(ask("/"))
    sources = re.findall(r'(?:src|href)="(page/[^"]+)"', page.text)
    assert sources
    for source in sources:
        for prefix in ("", "/behind/proxy"):  # which a proxy takes off, or leaves on
            answer = asyncio.run(ask(f"{prefix}/{source}"))
            assert answer.status_code == 200, source
            assert "script-src 'self'" in answer.headers["Content-Security-Policy"], prefix
