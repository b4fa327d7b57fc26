"""A client of the running service, for calls over HTTP."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest


@pytest.fixture(scope="session")
def http(service_url: str) -> Iterator[httpx.Client]:
    """Speaks to the running service."""
    with httpx.Client(base_url=service_url, timeout=60) as client:
        yield client
