"""What a call took goes when it ends, however it ends, and not when garbage is collected next."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
from safetensors.numpy import save

from attention_service.settings import Settings
from tests.api.support import (
    ATTENTION,
    GOOD,
    JSON,
    SAFETENSORS,
    TEXT,
    Caller,
    head,
    metric,
    quiet,
    until,
)
from tests.conftest import RunningService


@pytest.fixture(scope="module")
def caller(modules: Path, start_service: Callable[[Settings], RunningService]) -> Iterator[Caller]:
    settings = Settings(modules=modules, provider="cpu", threads=2, max_running=1, max_waiting=40)
    one = Caller(start_service(settings).url)
    yield one
    one.close()


def left_by(ending: Callable[[], None], caller: Caller) -> list[str]:
    """Where the frames stopped that nothing but the collector would free."""
    gc.collect()
    gc.disable()
    try:
        ending()
        assert quiet(caller, 20)
        time.sleep(0.1)  # the frames of what was counted end a moment later
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        return [
            f"{frame.f_code.co_name} in {frame.f_code.co_filename}"
            for frame in gc.garbage
            if isinstance(frame, FrameType) and "attention_" in frame.f_code.co_filename
        ]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def test_callers_who_hang_up(caller: Caller, long_call: bytes) -> None:
    def gone() -> float:
        return metric(caller, "attention_requests_total", status="499", code="caller_gone")

    def ending() -> None:
        for _ in range(3):
            with caller.connection() as connection:
                connection.sendall(
                    head(ATTENTION, Content_Type=SAFETENSORS, Content_Length=len(long_call))
                )
                connection.sendall(long_call)
                until(caller, "attention_running", 1)
            assert quiet(caller, 20)

    before = gone()
    assert left_by(ending, caller) == []
    assert gone() == before + 3


def test_calls_that_take_too_long(caller: Caller, long_call: bytes) -> None:
    def ending() -> None:
        for _ in range(3):
            answer = caller.post(
                ATTENTION, long_call, Content_Type=SAFETENSORS, X_Request_Timeout="0.2"
            )
            assert answer.status_code == 504

    assert left_by(ending, caller) == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (ATTENTION, b'{"query": [[1]]}'),
        (ATTENTION, b'{"query": "a"}'),
        (ATTENTION, b"{"),
        (ATTENTION, json.dumps({**GOOD, "value": [[1, 2]]}).encode()),
        (ATTENTION, json.dumps({**GOOD, "query": [[1e300, 1e300]] * 2}).encode()),
        ("/v1/modules/mha/attention", b'{"query": [[1]]}'),
        ("/v1/modules/nobody/attention", b'{"query": [[1]]}'),
        (TEXT, b'{"text": []}'),
        (TEXT, b'{"text": ["a"], "module": "nobody"}'),
    ],
)
def test_calls_that_are_refused(caller: Caller, path: str, body: bytes) -> None:
    def ending() -> None:
        assert 400 <= caller.post(path, body, Content_Type=JSON).status_code < 500

    assert left_by(ending, caller) == []


def test_calls_that_fail_together(caller: Caller) -> None:
    """A number that is none shows only in the tensors, and these are looked at together."""
    rng = np.random.default_rng(0)
    tensors = {n: rng.standard_normal((1, 8, 256, 64), np.float32) for n in ("query", "key")}
    tensors["query"][0, 0, 0, 0] = np.nan
    body = save({**tensors, "value": tensors["key"]}, metadata={"request": "{}"})

    def call(_: int) -> int:
        return caller.post(ATTENTION, body, Content_Type=SAFETENSORS).status_code

    def ending() -> None:
        with ThreadPoolExecutor(12) as threads:
            assert set(threads.map(call, range(24))) == {422}

    assert left_by(ending, caller) == []
