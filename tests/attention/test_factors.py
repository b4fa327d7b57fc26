"""Factors that float32 does not hold: a scale or softcap past its range, above or below."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attention_service.attention.engine import Engine
from attention_service.attention.sdpa import AttentionJob
from attention_wire.schemas import AttentionRequest

ROWS = np.array([[1, 0], [0, 2], [0, 0]], np.float64)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    "factors",
    [
        {"softcap": 5e-324},
        {"softcap": 1e-300},
        {"softcap": 1e-44},
        {"softcap": 1e39},
        {"softcap": 1.7e308},
        {"scale": 5e-324},
        {"scale": 1e-44, "softcap": 1e-44},
        {"scale": -1e39, "query": 0 * ROWS},
        {"scale": 1e300, "softcap": 2.0, "query": 0 * ROWS},
    ],
    ids=str,
)
def test_a_factor_past_the_range_of_float32_gives_numbers(
    engine: Engine, factors: dict[str, Any], dtype: type[np.floating[Any]]
) -> None:
    query = factors.get("query", ROWS)
    options = {name: factor for name, factor in factors.items() if name != "query"}
    tensors = {"query": query.astype(dtype), "key": ROWS.astype(dtype), "value": ROWS.astype(dtype)}
    wants = {"scores": "softcap", "lse": True}
    request = AttentionRequest.model_validate({**tensors, **options, "return": wants})
    answer = AttentionJob.of(request, engine).run()
    scores = query @ ROWS.T * factors.get("scale", 2**-0.5)
    if cap := factors.get("softcap"):
        with np.errstate(all="ignore"):
            scores = cap * np.tanh(scores / cap)
    weights = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    tolerance = 1e-3 if dtype is np.float16 else 1e-6
    np.testing.assert_allclose(answer["weights"], weights, atol=tolerance)
    np.testing.assert_allclose(answer["scores"], scores, atol=tolerance)
    np.testing.assert_allclose(answer["lse"], np.log(np.exp(scores).sum(axis=-1)), atol=1e-5)
