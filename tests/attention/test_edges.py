"""The edges of the contract: empty tensors, masked rows, poison, overflow, defaults."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest

from attention_service.attention.engine import Engine, EngineError
from attention_service.attention.sdpa import AttentionJob
from attention_wire.problems import ProblemError
from attention_wire.schemas import AttentionRequest
from tests import reference
from tests.provider import PROVIDER_NAME
from tests.reference import Array


def run(engine: Engine, **fields: Any) -> dict[str, Any]:
    return AttentionJob.of(AttentionRequest.model_validate(fields), engine).run()


def tensors(
    *sizes: int, dtype: type[np.floating[Any]] = np.float32, seed: int = 0
) -> dict[str, Array]:
    batch, heads, q_length, kv_length, size = sizes
    rng = np.random.default_rng(seed)
    return {
        "query": rng.standard_normal((batch, heads, q_length, size)).astype(dtype),
        "key": rng.standard_normal((batch, heads, kv_length, size)).astype(dtype),
        "value": rng.standard_normal((batch, heads, kv_length, size)).astype(dtype),
    }


def test_the_smallest_call_is_the_formula(engine: Engine) -> None:
    query = key = np.eye(2, dtype=np.float32)
    value = np.array([[1, 2], [3, 4]], np.float32)
    answer = run(engine, query=query, key=key, value=value)
    scores = query.astype(np.float64) @ key.T / np.sqrt(2)
    weights = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(answer["weights"], weights, atol=1e-6)
    np.testing.assert_allclose(answer["output"], weights @ value, atol=1e-6)
    assert answer["provider"] == PROVIDER_NAME


@pytest.mark.parametrize(
    "sizes", [(0, 2, 3, 4, 5), (1, 2, 0, 4, 5), (1, 2, 3, 0, 5)], ids=["B=0", "L=0", "S=0"]
)
@pytest.mark.parametrize("is_causal", [False, True])
def test_empty_sequences_give_zeros_or_nothing(
    engine: Engine, sizes: tuple[int, ...], is_causal: bool
) -> None:
    answer = run(engine, **tensors(*sizes), is_causal=is_causal)
    assert answer["output"].shape == (sizes[0], sizes[1], sizes[2], sizes[4])
    assert answer["weights"].shape == sizes[:4]
    assert not answer["output"].any()


def test_a_fully_masked_row_is_zero(engine: Engine) -> None:
    mask = np.array([[True, True], [False, False]])
    for form in (mask, np.where(mask, 0, -np.inf)):
        answer = run(engine, **tensors(1, 1, 2, 2, 4), attn_mask=form)
        assert answer["weights"][0, 0, 1].tolist() == [0, 0]
        assert answer["output"][0, 0, 1].tolist() == [0, 0, 0, 0]
        assert answer["weights"][0, 0, 0].sum() == pytest.approx(1)


def test_a_short_mask_masks_the_rest(engine: Engine) -> None:
    answer = run(engine, **tensors(1, 1, 3, 4, 2), attn_mask=np.array([True, True]))
    assert not answer["weights"][..., 2:].any()
    np.testing.assert_allclose(answer["weights"].sum(axis=-1), 1, atol=1e-6)


@pytest.mark.parametrize("name", ["key", "value"])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_poison_that_no_query_attends_counts_as_zero(
    engine: Engine, name: str, poison: float
) -> None:
    call = tensors(1, 2, 3, 4, 5)
    expected = run(engine, **call, attn_mask=np.arange(4) < 3)
    call[name][0, 1, 3, 2] = poison
    answer = run(engine, **call, attn_mask=np.arange(4) < 3)
    np.testing.assert_array_equal(answer["output"], expected["output"])
    np.testing.assert_array_equal(answer["weights"], expected["weights"])


def test_poison_past_a_causal_edge_counts_as_zero(engine: Engine) -> None:
    call = tensors(1, 1, 2, 4, 3)
    call["value"][0, 0, 2:] = np.nan
    assert np.isfinite(run(engine, **call, is_causal=True)["output"]).all()
    call["value"][0, 0, 1] = np.nan
    with pytest.raises(ProblemError, match=r"value: holds NaN at \[0,0,1,0\]"):
        run(engine, **call, is_causal=True)


def test_poison_that_one_head_attends_is_refused(engine: Engine) -> None:
    call = tensors(1, 2, 3, 4, 5)
    call["key"][0, 1, 3] = np.nan
    mask = np.ones((2, 1, 4), bool)
    mask[0, 0, 3] = False
    with pytest.raises(ProblemError, match="key: holds NaN"):
        run(engine, **call, attn_mask=mask)
    mask[1, 0, 3] = False
    assert np.isfinite(run(engine, **call, attn_mask=mask)["output"]).all()


def test_poison_in_the_query_is_refused(engine: Engine) -> None:
    call = tensors(1, 1, 3, 4, 5)
    call["query"][0, 0, 2, 1] = np.inf
    with pytest.raises(ProblemError, match=r"query: .* at \[0,0,2,1\]"):
        run(engine, **call, attn_mask=np.zeros(4, bool))


def test_scores_past_float32_are_computed_in_float64(engine: Engine) -> None:
    call = tensors(1, 1, 2, 3, 4)
    call["query"] *= np.float32(1e25)
    call["key"] *= np.float32(1e25)
    answer = run(engine, **call)
    expected = reference.attention(call["query"], call["key"], call["value"])
    assert answer["output"].dtype == np.float32
    np.testing.assert_allclose(answer["weights"], expected.weights, atol=1e-6)


def test_a_bias_past_float32_is_computed_in_float64(engine: Engine) -> None:
    call = tensors(1, 1, 2, 3, 4)
    bias = np.array([1e39, 0, 1e39 - 1e23])
    answer = run(engine, **call, attn_mask=bias)
    np.testing.assert_allclose(answer["weights"][0, 0], [[1, 0, 0]] * 2, atol=1e-6)


def test_scores_past_float64_are_refused(engine: Engine) -> None:
    call = tensors(1, 1, 2, 3, 4, dtype=np.float64)
    call["query"] *= 1e200
    call["key"] *= 1e200
    with pytest.raises(ProblemError, match="overflow float64"):
        run(engine, **call)


def test_a_mask_of_the_lowest_float_spreads_a_masked_row_evenly(engine: Engine) -> None:
    lowest = np.full((2, 3), np.finfo(np.float32).min)
    answer = run(engine, **tensors(1, 1, 2, 3, 4), attn_mask=lowest)
    np.testing.assert_allclose(answer["weights"], 1 / 3, atol=1e-6)


def test_what_is_not_asked_for_is_not_answered(engine: Engine) -> None:
    call = tensors(1, 1, 2, 3, 4)
    only_weights = run(engine, **call, **{"return": {"output": False}})
    assert set(only_weights) == {"weights", "provider"}
    only_output = run(engine, **call, **{"return": {"weights": False}})
    assert set(only_output) == {"output", "provider"}
    nothing = run(engine, **call, **{"return": {"weights": False, "output": False}})
    assert set(nothing) == {"provider"}


def test_equal_graphs_share_one_session_whatever_the_scale() -> None:
    fresh = Engine("cpu", 1)
    for scale in (0.1, 0.2, 0.3):
        for length in (2, 5):
            run(fresh, **tensors(1, 2, length, 3, 4), scale=scale)
    assert len(fresh._sessions) == 1


def test_a_provider_that_is_not_installed_is_refused() -> None:
    with pytest.raises(EngineError, match=r"it has .*\bcpu"):
        Engine("rocm")


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_does_not_start_is_refused_by_name_and_passed_over_by_auto(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As onnxruntime-gpu is, on a machine without a GPU: there, but of no use.
    names = ["ROCMExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    with pytest.raises(EngineError, match="'rocm' is in the installed ONNX Runtime, but does not"):
        Engine("rocm")
    assert Engine("auto").provider == "CPUExecutionProvider"
