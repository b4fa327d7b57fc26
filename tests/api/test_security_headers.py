"""Security headers: on every answer, and such that the docs still work."""

from __future__ import annotations

import httpx
import pytest

OF_ALL = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}
DATA = ("/v1/info", "/v1/modules", "/healthz", "/metrics", "/openapi.json", "/nothing/here")


@pytest.mark.parametrize("path", ["/", "/page/main.js"])
def test_the_page_has_those_of_all(service_url: str, path: str) -> None:
    answer = httpx.get(service_url + path)
    assert {name: answer.headers[name] for name in OF_ALL} == OF_ALL


@pytest.mark.parametrize("path", DATA)
def test_data_is_nothing_that_a_browser_runs_or_keeps(service_url: str, path: str) -> None:
    answer = httpx.get(service_url + path)
    assert {name: answer.headers[name] for name in OF_ALL} == OF_ALL
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("body", ['{"query": [[1]], "key": [[1]], "value": [[1]]}', "{"])
def test_answers_and_problems_of_calls_have_them(service_url: str, body: str) -> None:
    answer = httpx.post(f"{service_url}/v1/attention", content=body)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"


def test_the_docs_take_nothing_from_elsewhere(service_url: str) -> None:
    answer = httpx.get(f"{service_url}/docs")
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert {name: answer.headers[name] for name in OF_ALL} == OF_ALL
