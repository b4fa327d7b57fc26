"""Random calls over the whole option space against float64 numpy.

A tenth of them goes over HTTP in every wire form, the rest through the same job in process,
in tiles of several sizes. `make test` runs five hundred, always the same ones. To run 20,000:

    ATTENTION_CASES=20000 .venv/bin/pytest tests/attention/test_conformance.py

which takes about a quarter of an hour on two cores.
"""

from __future__ import annotations

import os
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from attention_service.attention.engine import Engine
from attention_service.attention.sdpa import AttentionJob
from attention_wire.schemas import AttentionRequest
from tests.attention.cases import Case, cases
from tests.attention.checks import Answer
from tests.attention.forms import post
from tests.provider import PROVIDER

CASES = int(os.environ.get("ATTENTION_CASES", "500"))
OVER_HTTP = max(200, CASES // 10)
TILE_BYTES = (256, 4096, None)

pytestmark = pytest.mark.timeout(120 if CASES <= 2000 else 7200)


def examples(count: int) -> Any:
    """Settings for `count` examples, the same ones each time."""
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@pytest.fixture(scope="module")
def engines(engine: Engine) -> dict[int | None, Engine]:
    """Engines by the bytes of a tile: some so small that short calls take many tiles."""
    made = {size: Engine(PROVIDER, 2, tile_bytes=size) for size in TILE_BYTES if size is not None}
    return {None: engine, **made}


@examples(OVER_HTTP)
@given(case=cases())
def test_random_calls_over_http_match_float64_numpy(http: httpx.Client, case: Case) -> None:
    note(repr(case))
    answer = post(http, case.fields(), case.form)
    Answer(case, answer, typed=case.form != "list").check(case.expected())


@examples(max(1, CASES - OVER_HTTP))
@given(case=cases(), tile_bytes=st.sampled_from(TILE_BYTES))
def test_random_calls_match_float64_numpy(
    engines: dict[int | None, Engine], case: Case, tile_bytes: int | None
) -> None:
    note(f"{case!r}, {tile_bytes=}")
    request = AttentionRequest.model_validate(case.fields())
    answer = AttentionJob.of(request, engines[tile_bytes]).run()
    Answer(case, answer).check(case.expected())
