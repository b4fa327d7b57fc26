"""The routes that compute nothing: what there is, whether it is well, the page, and no route."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest

from attention_service.api.app import create_app
from attention_service.attention.engine import PROVIDERS
from attention_service.serving.lifecycle import Lifecycle
from attention_service.settings import Settings
from tests.api.conftest import SMALL_ANSWER, SMALL_BODY, SMALL_MEMORY
from tests.api.support import ATTENTION, GOOD, Caller, check_problem, head, read_answer
from tests.conftest import TEXT_MODULE

GETS = ["/v1/info", "/v1/modules", "/v1/modules/mha", "/healthz", "/readyz", "/metrics", "/",
        "/docs", "/openapi.json"]  # fmt: skip
POSTS = [ATTENTION, "/v1/text/attention", "/v1/modules/mha/attention"]


def test_info_says_what_runs_here_and_what_it_takes(small: Caller) -> None:
    info = small.ask("GET", "/v1/info").json()
    assert info["name"] == "attention-service"
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", info["version"])
    assert info["provider"] == "CPUExecutionProvider"
    assert info["provider"] in info["available_providers"]
    assert set(info["available_providers"]) <= set(PROVIDERS.values())  # what can be chosen
    assert info["threads"] >= 1
    assert info["keys_required"] is False
    assert info["warnings"] == []  # this one listens on loopback
    assert info["limits"] == {
        "body_bytes": SMALL_BODY,
        "answer_bytes": SMALL_ANSWER,
        "memory_bytes": SMALL_MEMORY,
        "json_depth": 64,
        "running_calls": 2,
        "waiting_calls": 256,
        "timeout_seconds": 240.0,
    }


def answer_of(
    settings: Settings,
    path: str,
    lifecycle: Lifecycle | None = None,
    fields: dict[str, Any] | None = None,
) -> httpx.Response:
    """One answer of an app that was never started, and so needs no socket."""
    transport = httpx.ASGITransport(create_app(settings, lifecycle))

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request("POST" if fields else "GET", path, json=fields)

    return asyncio.run(ask())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_another_address_than_loopback_is_warned_of(host: str) -> None:
    info = answer_of(Settings(provider="cpu", host=host), "/v1/info").json()
    (warning,) = info["warnings"]
    assert host in warning
    assert "without keys" in warning


def test_modules_are_told_with_their_sizes(caller: Caller, modules: Path) -> None:
    told = caller.ask("GET", "/v1/modules").json()
    assert told["refused"] == []
    by_name = {module["name"]: module for module in told["modules"]}
    assert set(by_name) == {path.name for path in modules.iterdir()}
    text = by_name[TEXT_MODULE]
    assert (text["kind"], text["num_layers"], text["num_heads"]) == ("text", 6, 12)
    assert (text["embed_dim"], text["head_dim"], text["max_length"]) == (384, 32, 512)
    assert text["license"] == "Apache-2.0"
    assert "all-MiniLM-L6-v2" in text["source"]
    kdim = by_name["mha-kdim"]
    assert (kdim["kind"], kdim["num_layers"], kdim["num_heads"]) == ("multi_head", 1, 2)
    assert (kdim["embed_dim"], kdim["key_dim"], kdim["value_dim"]) == (16, 10, 12)
    for name, module in by_name.items():
        assert caller.ask("GET", f"/v1/modules/{name}").json() == module
        model = (modules / name / "model.onnx").read_bytes()
        assert module["sha256"] == hashlib.sha256(model).hexdigest()


def test_without_modules_the_service_is_ready(small: Caller) -> None:
    assert small.ask("GET", "/v1/modules").json() == {"modules": [], "refused": []}
    assert small.ask("GET", "/readyz").json() == {"status": "ok"}


@pytest.mark.parametrize("name", ["no-such", "%20", "%00", "%F0%9F%90%88", "x" * 5000])
def test_an_unknown_module_is_a_404(caller: Caller, name: str) -> None:
    answer = caller.ask("GET", f"/v1/modules/{name}")
    problem = check_problem(answer, 404, "unknown_module", says=(TEXT_MODULE,))
    assert len(problem["detail"]) < 1000


def test_a_service_that_starts_or_drains_is_not_ready_but_alive() -> None:
    settings = Settings(provider="cpu")
    for change, word in ((lambda _: None, "starting"), (Lifecycle.drain, "draining")):
        lifecycle = Lifecycle()
        change(lifecycle)
        answer = answer_of(settings, "/readyz", lifecycle)
        check_problem(answer, 503, "not_ready", says=(word,))
        assert int(answer.headers["Retry-After"]) >= 1
        assert answer_of(settings, "/healthz", lifecycle).json() == {"status": "ok"}


def test_calls_before_the_modules_are_loaded_are_a_503() -> None:
    answer = answer_of(Settings(provider="cpu"), ATTENTION, fields=GOOD)
    check_problem(answer, 503, "not_ready")
    assert answer.headers["Retry-After"] == "1"
    assert answer.headers["Connection"] == "close"


def test_the_page_leads_to_what_there_is(caller: Caller) -> None:
    page = caller.ask("GET", "/")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    links = re.findall(r'href="([^"]+)"', page.text)
    assert {"docs", "v1/info", "v1/modules"} <= set(links)
    for link in links:
        assert "//" not in link  # nothing of anybody else's
        assert caller.ask("GET", "/" + link).status_code == 200
    assert not re.search(r"(src|@import|url)\s*[=(]\s*[\"']?https?:", page.text)


def test_the_docs_are_whole_without_a_network(caller: Caller) -> None:
    page = caller.ask("GET", "/docs")
    assert page.status_code == 200
    assert "http://" not in page.text.replace("http://www.w3.org", "")
    assert "https://" not in page.text
    assets = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(assets) >= 2
    for asset in assets:
        url = urljoin(caller.url + "/docs", asset)
        assert url.startswith(caller.url)
        answer = caller.ask("GET", url.removeprefix(caller.url))
        assert answer.status_code == 200, asset
        assert answer.content
    (document,) = re.findall(r"url: '([^']+)'", page.text)
    assert set(caller.ask("GET", document).json()["paths"]) >= {ATTENTION, "/v1/modules/{name}"}


def test_behind_a_proxy_the_docs_are_found_under_its_path() -> None:
    settings = Settings(provider="cpu", root_path="/behind/proxy/")
    page = answer_of(settings, "/docs").text
    assert "url: '/behind/proxy/openapi.json'" in page
    assert '"/behind/proxy/docs-assets/' in page
    document = answer_of(settings, "/openapi.json").json()
    assert {"url": "/behind/proxy"} in document["servers"]
    for path in ("/v1/info", "/behind/proxy/v1/info", "/docs-assets/swagger-ui.css"):
        assert answer_of(settings, path).status_code == 200


# --- Methods and paths -----------------------------------------------------------------


@pytest.mark.parametrize("path", GETS)
def test_head_is_get_without_its_body(caller: Caller, path: str) -> None:
    get, bare = caller.ask("GET", path), caller.ask("HEAD", path)
    assert (get.status_code, bare.status_code) == (200, 200)
    assert bare.content == b""
    assert bare.headers["Content-Type"] == get.headers["Content-Type"]
    assert "X-Request-ID" in bare.headers
    if path != "/metrics":  # which tells other numbers each time
        assert bare.headers["Content-Length"] == str(len(get.content))


@pytest.mark.parametrize("path", ["/nothing", ATTENTION, "/v1/modules/no-such"])
def test_head_of_a_problem_has_no_body_either(caller: Caller, path: str) -> None:
    with caller.connection() as connection:
        for _ in range(2):  # a body, were there one, would stand before the second answer
            connection.sendall(head(path).replace(b"POST", b"HEAD"))
            answer = read_answer(connection, "HEAD")
            assert answer.status_code == (405 if path == ATTENTION else 404)
            assert answer.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize("path", GETS)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_another_method_than_get_is_a_405_that_says_so(
    caller: Caller, method: str, path: str
) -> None:
    answer = caller.ask(method, path)
    check_problem(answer, 405, "method_not_allowed", says=(method, path, "GET, HEAD"))
    assert answer.headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_another_method_than_post_is_a_405_that_says_so(
    caller: Caller, method: str, path: str
) -> None:
    answer = caller.ask(method, path)
    check_problem(answer, 405, "method_not_allowed", says=(method, path, "use POST"))
    assert answer.headers["Allow"] == "POST"


@pytest.mark.parametrize(
    "path",
    ["/nothing", "/v1", "/v1/", "/v1/attention/", "/v1/info/", "/v1//info", "/V1/info",
     "/v1/modules/", "/v1/modules/a/b", "/docs-assets/../../settings.py", "/docs-assets/nothing",
     "/docs-assets/%2e%2e/%2e%2e/settings.py", "/redoc", "/%00", "/%FF", "/" + "x" * 9000,
     "//evil.example/", "/page/../page_files.py"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_path_is_a_404_and_never_a_redirection(
    caller: Caller, method: str, path: str
) -> None:
    body = json.dumps(GOOD).encode() if method == "POST" else b""
    with caller.connection() as connection:  # no client in between that resolves the path
        start = head(path, Content_Length=len(body)) if body else head(path)
        connection.sendall(start.replace(b"POST", method.encode(), 1) + body)
        answer = read_answer(connection)
    if method == "POST" and path.startswith("/docs-assets/"):  # files, which are got
        check_problem(answer, 405, "method_not_allowed", says=("use GET, HEAD",))
        assert answer.headers["Allow"] == "GET, HEAD"
        assert answer.headers["Connection"] == "close"
        return
    problem = check_problem(answer, 404, "not_found", says=("/docs lists what there is",))
    assert len(problem["detail"]) < 10_000
    if body:
        assert answer.headers["Connection"] == "close"
