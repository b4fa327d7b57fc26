"""The OpenAPI document is committed, whole, and its examples work."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from attention_service.api import examples
from attention_service.api.app import create_app
from attention_service.settings import Settings
from attention_wire.names import ROUTES
from tests.conftest import ROOT

EXAMPLES = [
    (path, name, example["value"])
    for path, group in (
        ("/v1/attention", examples.ATTENTION),
        ("/v1/modules/example/attention", examples.MODULE_ATTENTION),
        ("/v1/text/attention", examples.TEXT_ATTENTION),
        ("/v2/models/sdpa/infer", examples.INFER),
    )
    for name, example in group.items()
]


def test_the_committed_document_is_the_apps() -> None:
    committed = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))
    document = create_app(Settings(provider="cpu")).openapi()
    assert committed == json.loads(json.dumps(document)), "run `make openapi`"


@pytest.mark.parametrize(("path", "name", "value"), EXAMPLES, ids=lambda v: str(v)[:40])
def test_every_example_is_answered(
    service_url: str, path: str, name: str, value: dict[str, Any]
) -> None:
    answer = httpx.post(service_url + path, json=value)
    assert answer.status_code == 200, answer.text


def test_every_operation_is_named_for_people() -> None:
    document = create_app(Settings(provider="cpu")).openapi()
    for path, item in document["paths"].items():
        for operation in item.values():
            summary = operation["summary"]
            assert summary != summary.title(), (path, summary)  # FastAPI's, of a function's name


def test_every_compute_route_has_examples() -> None:
    document = create_app(Settings(provider="cpu")).openapi()
    posts = {path: item["post"] for path, item in document["paths"].items() if "post" in item}
    compute = {path: operation for path, operation in posts.items() if "requestBody" in operation}
    assert len(compute) == 5
    for operation in compute.values():
        assert operation["requestBody"]["content"]["application/json"]["examples"]


def test_problems_name_the_routes_that_take_a_field() -> None:
    paths = json.loads((ROOT / "docs" / "openapi.json").read_text(encoding="utf-8"))["paths"]
    for model, path in ROUTES.items():
        form = paths[path]["post"]["requestBody"]["content"]["application/json"]
        assert form["schema"]["$ref"].endswith(f"/{model.__name__}")
