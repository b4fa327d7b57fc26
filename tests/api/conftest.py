"""Fixtures of the tests over HTTP: a caller whose service must outlive what it is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from attention_service.settings import Settings
from tests.api.support import Caller
from tests.conftest import RunningService


@pytest.fixture(scope="module")
def _shared_caller(service_url: str) -> Iterator[Caller]:
    caller = Caller(service_url)
    yield caller
    caller.close()


@pytest.fixture
def caller(_shared_caller: Caller) -> Iterator[Caller]:
    """Calls the service; after the test, whatever it sent, a good request is answered."""
    yield _shared_caller
    _shared_caller.must_serve()


@pytest.fixture(scope="session")
def small_url(start_service: Callable[[Settings], RunningService]) -> str:
    """The address of a service with small limits and without modules."""
    settings = Settings(
        modules="/nonexistent",
        provider="cpu",
        max_body_bytes=SMALL_BODY,
        max_answer_bytes=SMALL_ANSWER,
        memory_budget_bytes=SMALL_MEMORY,
    )
    return start_service(settings).url


@pytest.fixture
def small(small_url: str) -> Iterator[Caller]:
    """Calls the service with small limits, which must serve afterwards, too."""
    caller = Caller(small_url)
    yield caller
    caller.must_serve()
    caller.close()


SMALL_BODY = 2**18
SMALL_ANSWER = 2**16
SMALL_MEMORY = 2**20
