"""However a call is cut into tiles, its results are the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, note

from attention_service.attention.engine import Engine
from attention_service.attention.sdpa import AttentionJob
from attention_wire.schemas import AttentionRequest
from tests import reference
from tests.attention.cases import Case, cases
from tests.attention.test_conformance import examples
from tests.provider import PROVIDER
from tests.reference import Array

SMALL_TILES = 4096
# Next to this a float32 has no digits left of the scores.
LARGE = 1e4
# What may be 0 but for rounding, and is compared absolutely.
NEAR_ZERO = ("lse", "entropy", "weights.rest")


@pytest.fixture(scope="module")
def small_tiles() -> Engine:
    return Engine(PROVIDER, 2, tile_bytes=SMALL_TILES)


def run(engine: Engine, case: Case) -> dict[str, Any]:
    return AttentionJob.of(AttentionRequest.model_validate(case.fields()), engine).run()


def arrays(answer: dict[str, Any], name: str = "") -> Iterator[tuple[str, Array]]:
    """The arrays of an answer that can be compared: the order of equals may differ."""
    for key, value in answer.items():
        if isinstance(value, dict) and key == "weights":
            yield from arrays(value, "weights.")
        elif isinstance(value, np.ndarray) and key != "indices":
            yield f"{name}{key}", value.astype(np.float64)


@examples(120)
@given(case=cases(long=2, longest=4))
def test_small_tiles_give_the_same(engine: Engine, small_tiles: Engine, case: Case) -> None:
    case = replace(case, dtype="float32")
    note(repr(case))
    whole, tiled = run(engine, case), run(small_tiles, case)
    scale = max(1.0, float(case.expected().row_scale.max(initial=1)))
    for (name, expected), (_, actual) in zip(arrays(whole), arrays(tiled), strict=True):
        finite = np.isfinite(expected)
        np.testing.assert_array_equal(actual[~finite], expected[~finite], err_msg=name)
        if scale > LARGE:
            continue
        if name in NEAR_ZERO:
            np.testing.assert_allclose(
                actual[finite], expected[finite], rtol=1e-6, atol=1e-6 * scale, err_msg=name
            )
        else:
            reference.assert_close(actual[finite], expected[finite], 1e-6 * scale)


def test_small_tiles_are_many(engine: Engine, small_tiles: Engine) -> None:
    rng = np.random.default_rng(0)
    tensor = rng.standard_normal((1, 2, 200, 8)).astype(np.float32)
    fields = {"query": tensor, "key": tensor, "value": tensor, "return": {"plan": True}}
    request = AttentionRequest.model_validate(fields)
    whole, tiled = (
        sum(step["tiles"] for step in AttentionJob.of(request, on).run()["plan"]["steps"])
        for on in (engine, small_tiles)
    )
    # 4096 bytes hold five rows of 200 scores.
    assert tiled >= 80 > whole
