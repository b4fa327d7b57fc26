"""Calls whose keys and values are not looked at first: what their results show, is found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attention_service.attention.call import AttentionCall
from attention_service.attention.engine import Engine
from attention_service.attention.sdpa import AttentionJob
from attention_wire.problems import ProblemError
from attention_wire.schemas import AttentionRequest
from tests import reference
from tests.reference import Array

OUTPUT_ALONE = {"return": {"weights": False}}
CASES: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {
    "one row over many keys": ((8, 1, 8192), {}),
    "few rows of grouped heads": ((8, 4, 4096), OUTPUT_ALONE),
    "few rows, causal": ((8, 2, 8192), {"is_causal": True, "query_offset": 8190}),
    "fused": ((8, 100, 300), OUTPUT_ALONE),
    "composed": ((8, 100, 300), {"softcap": 5.0}),
    "causal": ((8, 300, 300), {"is_causal": True} | OUTPUT_ALONE),
}
SIZES = pytest.mark.parametrize(("sizes", "options"), CASES.values(), ids=CASES)
NAMES = pytest.mark.parametrize("name", ["key", "value"])
POISON = pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])


def fields(sizes: tuple[int, int, int], options: dict[str, Any]) -> dict[str, Any]:
    heads, q_length, kv_length = sizes
    kv_heads = 2 if q_length == 4 else heads
    rng = np.random.default_rng(0)
    query = rng.standard_normal((1, heads, q_length, 64), np.float32)
    key, value = (rng.standard_normal((1, kv_heads, kv_length, 64), np.float32) for _ in range(2))
    return {"query": query, "key": key, "value": value, **options}


def job(engine: Engine, asked: dict[str, Any]) -> AttentionJob:
    return AttentionJob.of(AttentionRequest.model_validate(asked), engine)


def is_trusted(call: AttentionCall) -> bool:
    trusted = call.trusting()
    if trusted is not None:
        trusted.look()
    return trusted is not None


def expected_output(asked: dict[str, Any]) -> Array:
    """The float64 reference's, of one call of these cases."""
    options = {
        name: asked[name]
        for name in ("attn_mask", "is_causal", "softcap", "query_offset")
        if name in asked
    }
    return reference.attention(asked["query"], asked["key"], asked["value"], **options).output


@SIZES
def test_what_is_trusted_is_right(
    engine: Engine, sizes: tuple[int, int, int], options: dict[str, Any]
) -> None:
    asked = fields(sizes, options)
    call = job(engine, asked)
    assert is_trusted(call.call)
    np.testing.assert_allclose(call.run()["output"], expected_output(asked), atol=2e-6)


@SIZES
@NAMES
@POISON
def test_poison_is_found_wherever_it_is(
    engine: Engine,
    sizes: tuple[int, int, int],
    options: dict[str, Any],
    name: str,
    poison: float,
) -> None:
    asked = fields(sizes, options)
    kv_heads, kv_length = asked[name].shape[1:3]
    for place in ((0, 0, 0, 63), (0, kv_heads - 1, kv_length - 1, 0)):
        poisoned = asked[name].copy()
        poisoned[place] = poison
        where = ",".join(map(str, place))
        with pytest.raises(ProblemError, match=rf"{name}: holds (NaN|infinity) at \[{where}\]"):
            job(engine, asked | {name: poisoned}).run()


@SIZES
@NAMES
def test_poison_that_is_masked_counts_as_zero(
    engine: Engine, sizes: tuple[int, int, int], options: dict[str, Any], name: str
) -> None:
    asked = fields(sizes, options)
    asked["attn_mask"] = np.arange(sizes[2]) != 17
    expected = expected_output(asked)
    asked[name][:, :, 17] = np.nan
    np.testing.assert_allclose(job(engine, asked).run()["output"], expected, atol=2e-6)


@SIZES
def test_a_value_of_no_weight_is_found_too(
    engine: Engine, sizes: tuple[int, int, int], options: dict[str, Any]
) -> None:
    asked = fields(sizes, options) | {"scale": 1.0}
    asked["softcap"] = 0.0
    asked["query"] = np.abs(asked["query"])
    asked["key"][:, :, 5] = -1e4  # its weight is 0 in float32
    asked["value"][0, 0, 5, 5] = np.nan
    with pytest.raises(ProblemError, match=r"value: holds (NaN|infinity) at \[0,0,5,5\]"):
        job(engine, asked).run()


@SIZES
def test_scores_that_float32_cannot_hold_are_computed_in_float64(
    engine: Engine, sizes: tuple[int, int, int], options: dict[str, Any]
) -> None:
    asked = fields(sizes, options)
    asked["query"] *= np.float32(1e20)
    asked["key"] *= np.float32(1e20)
    answer = job(engine, asked | {"return": {"weights": False, "plan": True}}).run()
    assert {step["dtype"] for step in answer["plan"]["steps"]} == {"float64"}
    # A softmax of such scores is one key's.
    np.testing.assert_allclose(answer["output"], expected_output(asked), atol=1e-6)


@pytest.mark.parametrize(
    "asked", [{"output": False, "lse": True, "weights": False}, {"output": False, "scores": "raw"}]
)
def test_without_an_output_everything_is_looked_at(engine: Engine, asked: dict[str, Any]) -> None:
    call = job(engine, fields((8, 1, 8192), {"return": asked}))
    assert not is_trusted(call.call)


def test_chosen_scores_do_not_show_all_keys(engine: Engine) -> None:
    selection = {"weights": {"heads": [0]}, "scores": "masked"}
    asked = fields((8, 1, 8192), {"return": selection})
    asked["key"][0, 7, 8000, 3] = np.inf
    with pytest.raises(ProblemError, match=r"key: holds (NaN|infinity) at \[0,7,8000,3\]"):
        job(engine, asked).run()
