"""Fixtures of the client's tests: clients of the real service, and a server with a script."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Protocol

import pytest

from attention_client import AsyncAttentionClient, AttentionClient
from tests.client.scripted import ScriptedServer


@pytest.fixture(scope="session")
def client(service_url: str) -> Iterator[AttentionClient]:
    with AttentionClient(service_url) as client:
        yield client


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


class Ask(Protocol):
    """Makes one call of a client; settings of the client go into `settings`."""

    def __call__(
        self, url: str, method: str, *args: Any, settings: dict[str, Any] = ..., **options: Any
    ) -> Any: ...


def _ask(
    url: str, method: str, *args: Any, settings: dict[str, Any] | None = None, **options: Any
) -> Any:
    with AttentionClient(url, **settings or {}) as client:
        _without_jitter(client)
        return getattr(client, method)(*args, **options)


def _ask_async(
    url: str, method: str, *args: Any, settings: dict[str, Any] | None = None, **options: Any
) -> Any:
    async def main() -> Any:
        async with AsyncAttentionClient(url, **settings or {}) as client:
            _without_jitter(client)
            return await getattr(client, method)(*args, **options)

    return asyncio.run(main())


def _without_jitter(client: AttentionClient | AsyncAttentionClient) -> None:
    """Full jitter draws delays from 0 up; always 0 spares the tests the waiting."""
    settings = client._settings
    client._settings = replace(settings, policy=replace(settings.policy, random=lambda: 0.0))


@pytest.fixture(params=[_ask, _ask_async], ids=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Makes one call, by either client."""
    function: Ask = request.param
    return function
