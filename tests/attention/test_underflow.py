"""Numbers below float32's smallest normal one: computed as 0, and never to be seen by it."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import pytest

from attention_service.attention.engine import Engine
from attention_service.attention.sdpa import AttentionJob
from attention_wire.schemas import AttentionRequest
from tests.reference import attention

KEY = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
VALUE = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.float32)


def run(engine: Engine, **fields: Any) -> dict[str, np.ndarray]:
    return AttentionJob.of(AttentionRequest.model_validate(fields), engine).run()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_that_underflow(engine: Engine, dtype: str) -> None:
    # Weights of e⁻⁹⁵ are subnormal in float32, those of e⁻⁷²⁰ in float64.
    gap = 95 if dtype == "float32" else 720
    query, key = np.array([[gap]], dtype), np.array([[1], [0]], dtype)
    weights = run(engine, query=query, key=key, value=key, scale=1)["weights"]
    assert weights[0, 0] == 1
    assert 0 <= weights[0, 1] < np.finfo(dtype).tiny
    are_kept = dtype == "float64" or platform.machine() != "x86_64"
    assert (weights[0, 1] > 0) == are_kept


def test_the_caller_s_own_arithmetic_has_them_again(engine: Engine) -> None:
    for dtype in ("float32", "float64"):
        run(engine, query=KEY.astype(dtype), key=KEY.astype(dtype), value=KEY.astype(dtype))
        small = np.array([1e-30], np.float32)
        assert (small * np.float32(1e-10)).item() > 0
        assert (np.array([1e-40], np.float32) * np.float32(1e10)).item() > 0


def test_means_of_heads_that_are_subnormal_are_told_apart(engine: Engine) -> None:
    # The first head's weights are 1 and three little above the smallest normal number, in an order
    # of their own; the other head sees but the first key, so the means are half of that.
    gaps = np.array([0, -87.2, -87.0, -87.1])
    query = np.array([1, 1], np.float32).reshape(1, 2, 1, 1)
    key = np.stack([gaps, [0, -200, -200, -200]]).astype(np.float32).reshape(1, 2, 4, 1)
    wants = {"output": False, "weights": {"reduce": "mean", "top_k": 4}}
    request = {"query": query, "key": key, "value": key, "scale": 1, "return": wants}
    found = run(engine, **request)["weights"]
    assert found["indices"].ravel().tolist() == [0, 2, 3, 1]
    assert (np.diff(found["values"].ravel()) < 0).all()


# Each is the product of an ordinary score, by way of a number that is subnormal in float32.
ORDINARY_SCORES = {
    "a scaled query": {"query": 1e-10 * KEY, "key": 1e38 * KEY, "scale": 1e-29},
    "a query": {"query": 1e-40 * KEY, "key": 1e38 * KEY, "scale": 10.0},
    "a score over its cap": {"query": 0.1 * KEY, "key": KEY, "softcap": 3e38},
}


@pytest.mark.parametrize("what", ORDINARY_SCORES)
@pytest.mark.parametrize("count", [1, 20_000], ids=["few keys", "keys that are not looked at"])
def test_what_is_multiplied_again_is_not_lost(engine: Engine, what: str, count: int) -> None:
    options: dict[str, Any] = dict(ORDINARY_SCORES[what])
    query = np.tile(options.pop("query")[:1].astype(np.float32), (1, 32))
    key = np.tile(options.pop("key").astype(np.float32), (count, 32))
    value = np.tile(VALUE, (count, 1))
    found = run(engine, query=query, key=key, value=value, **options)
    tensors = [tensor.astype(np.float64)[None, None] for tensor in (query, key, value)]
    expected = attention(*tensors, **options)
    assert np.ptp(expected.scores["raw"]) > 0.3
    np.testing.assert_allclose(found["output"], expected.output[0, 0], rtol=1e-5)
    np.testing.assert_allclose(found["weights"], expected.weights[0, 0], rtol=1e-5)
