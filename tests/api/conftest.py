"""Fixtures of the tests over HTTP: a caller whose service must outlive what it is sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import httpx
import numpy as np
import pytest
from safetensors.numpy import save

from attention_service.settings import Settings
from tests.api.support import Caller
from tests.api.text_models import Array, Asked, make_models, whole_weights
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


@pytest.fixture(scope="session")
def http(start_service: Callable[[Settings], RunningService]) -> Iterator[httpx.Client]:
    """Speaks to a service without modules, in two threads."""
    url = start_service(Settings(modules=Path("/nonexistent"), provider="cpu", threads=2)).url
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def long_call() -> bytes:
    """Seconds of work in two threads, in hundreds of tiles, for nine megabytes in and few out."""
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.standard_normal((1, 1, 49152, 16), np.float32)
        for name in ("query", "key", "value")
    }
    fields = '{"return": {"output": false, "weights": false, "entropy": true}}'
    return save(tensors, metadata={"request": fields})


@pytest.fixture(scope="session")
def _models_caller(
    modules: Path,
    tmp_path_factory: pytest.TempPathFactory,
    start_service: Callable[[Settings], RunningService],
) -> Iterator[Caller]:
    folder = make_models(tmp_path_factory.mktemp("texts"), modules)
    caller = Caller(start_service(Settings(modules=folder, provider="cpu", threads=2)).url)
    yield caller
    caller.close()


@pytest.fixture
def models_caller(_models_caller: Caller) -> Iterator[Caller]:
    """Calls a service with all models of `ASKED`, which must serve afterwards, too."""
    yield _models_caller
    _models_caller.must_serve()


@pytest.fixture(scope="session")
def weights_of(_models_caller: Caller) -> Callable[[Asked], Array]:
    """The whole weights of a text ``[layers,H,L,L]``, in float64."""
    return cache(lambda asked: whole_weights(_models_caller, asked))


SMALL_BODY = 2**18
SMALL_ANSWER = 2**16
SMALL_MEMORY = 2**20
