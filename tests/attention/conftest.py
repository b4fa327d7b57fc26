"""A client of a running service, for calls over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from attention_service.settings import Settings
from tests.conftest import RunningService
from tests.provider import PROVIDER


@pytest.fixture(scope="session")
def http(start_service: Callable[[Settings], RunningService]) -> Iterator[httpx.Client]:
    """Speaks to a service without modules, which attention needs none of."""
    url = start_service(Settings(modules=Path("/nonexistent"), provider=PROVIDER)).url
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client
