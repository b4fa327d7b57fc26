"""Every option of attention and every part of `return`, from the client's arguments to results."""

from __future__ import annotations

import json
import pydoc
import re
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load

from attention_client import (
    AttentionClient,
    AttentionOptions,
    NotReturnedError,
    Range,
    Return,
    WeightsSelection,
    _calls,
)
from attention_client._fields import _CONVERTERS, of_attention
from attention_wire.schemas import AttentionRequest
from tests import reference
from tests.client.conftest import Ask
from tests.client.contract import attend

RNG = np.random.default_rng(17)
ONE = [[1.0]], [[1.0]], [[5.0]]
PAST = {
    "past_key": RNG.standard_normal((2, 2, 3, 8)).astype(np.float32),
    "past_value": RNG.standard_normal((2, 2, 3, 3)).astype(np.float32),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "scale": {"scale": 0.3},
    "softcap": {"softcap": 0.8},
    "window": {"left_window_size": 1, "right_window_size": np.int64(2)},
    "nonpad": {"nonpad_kv_seqlen": [6, 2], "is_causal": True},
    "precision": {"softmax_precision": "float64"},
    "past": {**PAST, "is_causal": True},
    "sinks": {"sinks": [0.0, 1.0, 2.0, -1.0]},
    "alibi": {"alibi_slopes": np.array([0.5, 0.25, 1, 2])},
    "documents": {
        "query_document_ids": [[0, 0, 1, 1, 2]] * 2,
        "key_document_ids": np.array([[0, 1, 1, 0, 3, 0]] * 2, np.int32),
    },
    "offsets": {"query_offset": 2, "key_offset": -1, "is_causal": True},
    "mask": {"attn_mask": RNG.random((4, 5, 4)) < 0.7},
    "all": {
        "attn_mask": RNG.standard_normal((5, 7)).astype(np.float16),
        "is_causal": True,
        "softcap": 3.0,
        "left_window_size": 5,
        "sinks": [0.1] * 4,
        "alibi_slopes": [0.1] * 4,
        "query_offset": 5,
        "key_offset": 1,
        **PAST,
    },
}


def tensors() -> list[np.ndarray]:
    shapes = (2, 4, 5, 8), (2, 2, 6, 8), (2, 2, 6, 3)
    return [RNG.standard_normal(shape).astype(np.float32) for shape in shapes]


# --- Arguments -------------------------------------------------------------------------


def test_the_options_are_the_contract_s() -> None:
    fields = set(AttentionRequest.model_fields) - {"query", "key", "value", "tensor_format"}
    assert set(AttentionOptions.__annotations__) == set(_CONVERTERS) == fields
    documented = AttentionClient.attention.__doc__ or ""
    assert not [name for name in fields if f"``{name}``" not in documented]


def test_help_describes_each_option() -> None:
    shown = pydoc.plain(pydoc.render_doc(AttentionOptions))
    described = re.findall(r"^ \|      (\w+): \S", shown, re.MULTILINE)
    assert described == list(AttentionOptions.__annotations__)


def test_options_as_they_go_on_the_wire() -> None:
    options: AttentionOptions = {
        "softcap": 2,
        "left_window_size": np.int32(3),  # type: ignore[typeddict-item]
        "nonpad_kv_seqlen": [1],
        "softmax_precision": 11,
        "sinks": [0.5],
        "query_document_ids": np.zeros((1, 1), np.int32),
        "query_offset": -4,
        "attn_mask": None,
        "return_": Return(weights=WeightsSelection(queries=Range(start=0, stop=1), top_k=3)),
    }
    call = _calls.attention(of_attention(*ONE, options), None)
    assert call.request.body is not None
    body = bytes(call.request.body)
    length = int.from_bytes(body[:8], "little")
    assert json.loads(json.loads(body[8 : 8 + length])["__metadata__"]["request"]) == {
        "softcap": 2.0,
        "left_window_size": 3,
        "softmax_precision": 11,
        "query_offset": -4,
        "return": {"weights": {"queries": {"start": 0, "stop": 1}, "top_k": 3}},
    }
    sent = {name: (array.dtype.name, array.tolist()) for name, array in load(body).items()}
    assert sent == {
        "query": ("float32", [[1.0]]),
        "key": ("float32", [[1.0]]),
        "value": ("float32", [[5.0]]),
        "nonpad_kv_seqlen": ("int64", [1]),
        "sinks": ("float32", [0.5]),
        "query_document_ids": ("int32", [[0]]),
    }


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sclae": 1.0}, TypeError, "no argument 'sclae'; did you mean 'scale'"),
        ({"is_casual": True}, TypeError, "did you mean 'is_causal'"),
        ({"softmax_scale": 1.0}, TypeError, "did you mean 'scale'"),
        ({"lse": True}, TypeError, "did you mean 'return.lse'"),
        ({"dropout_p": 0.1}, TypeError, "leave it out: there is no dropout"),
        ({"xyz": 1}, TypeError, "no argument 'xyz'$"),
        ({"softcap": float("inf")}, ValueError, "softcap must be a finite number"),
        ({"nonpad_kv_seqlen": [1.0]}, TypeError, "nonpad_kv_seqlen: .*give integers"),
        ({"sinks": [True]}, TypeError, "sinks: holds true and false"),
        ({"attn_mask": [[1]]}, ValueError, "attn_mask: a list of 0s and 1s"),
    ],
)
def test_arguments_that_cannot_be_sent(
    ask: Ask, server: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ask(server.url, "attention", *ONE, **options)
    assert not server.received


@pytest.mark.parametrize(
    ("method", "arguments", "option", "message"),
    [
        ("text_attention", ("a",), "layer", "no argument 'layer'; did you mean 'layers'"),
        ("text_attention", ("a",), "pair", "did you mean 'text_pair'"),
        ("text_attention", ("a",), "unknown", r"text_attention\(\) has no argument 'unknown'$"),
        ("module_attention", ("m", ONE[0]), "causal", "did you mean 'is_causal'"),
    ],
)
def test_arguments_that_a_call_does_not_have(
    ask: Ask, server: Any, method: str, arguments: Any, option: str, message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        ask(server.url, method, *arguments, **{option: 1})
    assert not server.received


@pytest.mark.parametrize("case", OPTIONS)
def test_each_option_has_its_effect(ask: Ask, service_url: str, case: str) -> None:
    arrays, options = tensors(), OPTIONS[case]
    asked = {"lse": True, "weights": False}
    result = ask(service_url, "attention", *arrays, **options, return_=asked)
    given = {n: np.array(v) if isinstance(v, list) else v for n, v in options.items()}
    expected = attend(dict(zip(("query", "key", "value"), arrays, strict=True)) | given)
    reference.assert_close(result.output, expected.output, 1e-5)
    np.testing.assert_allclose(result.lse, expected.lse, rtol=1e-5, atol=1e-5)


# --- Results ---------------------------------------------------------------------------


def test_the_rows_numbers(client: AttentionClient) -> None:
    asked = {"lse": True, "entropy": True, "scores": "masked"}
    result = client.attention(*tensors(), is_causal=True, return_=asked)
    scores = result.scores.astype(np.float64)
    assert scores.shape == result.weights.shape == (2, 4, 5, 6)
    assert np.isneginf(scores[..., 0, 1:]).all()
    lse = np.log(np.exp(scores).sum(-1))
    weights = np.exp(scores - lse[..., None])
    np.testing.assert_allclose(result.weights, weights, atol=1e-6)
    np.testing.assert_allclose(result.lse, lse, rtol=1e-5)
    entropy = -(weights * np.log(weights, where=weights > 0, out=np.zeros_like(weights))).sum(-1)
    np.testing.assert_allclose(result.entropy, entropy, atol=1e-5)


@pytest.mark.parametrize("mode", ["raw", "softcap"])
def test_scores_before_the_mask(client: AttentionClient, mode: str) -> None:
    query, key, value = tensors()
    result = client.attention(
        query, key, value, softcap=0.8, is_causal=True, return_={"scores": mode}
    )
    raw = query @ key.repeat(2, axis=1).swapaxes(2, 3) / np.sqrt(8)
    expected = raw if mode == "raw" else 0.8 * np.tanh(raw / 0.8)
    np.testing.assert_allclose(result.scores, expected, atol=1e-5)


def test_a_cache_that_grows(client: AttentionClient) -> None:
    query, key, value = (RNG.standard_normal((1, 2, 4, 8)).astype(np.float32) for _ in range(3))
    whole = client.attention(query, key, value, is_causal=True).output
    step = client.attention(
        query[:, :, :1], key[:, :, :1], value[:, :, :1], return_={"present": True}
    )
    for row in range(1, 4):
        new = slice(row, row + 1)
        step = client.attention(
            query[:, :, new],
            key[:, :, new],
            value[:, :, new],
            past_key=step.present_key,
            past_value=step.present_value,
            is_causal=True,
        )
        np.testing.assert_allclose(step.output, whole[:, :, new], atol=1e-6)
    np.testing.assert_array_equal(step.present_key, key)
    np.testing.assert_array_equal(step.present_value, value)


def test_a_part_of_the_weights(client: AttentionClient) -> None:
    arrays = tensors()
    whole = client.attention(*arrays).weights
    chosen = {"heads": [3, 0], "queries": [4, 1, 2]}
    some = client.attention(*arrays, return_={"weights": chosen})
    np.testing.assert_allclose(some.weights, whole[:, [3, 0]][:, :, [4, 1, 2]], atol=1e-6)
    mean = client.attention(*arrays, return_={"weights": {**chosen, "reduce": "mean"}})
    expected = whole[:, [3, 0]][:, :, [4, 1, 2]].mean(1, keepdims=True)
    np.testing.assert_allclose(mean.weights, expected, atol=1e-6)
    rows = {"queries": Range(start=1, stop=3)}
    model = Return(output=False, weights=WeightsSelection(**rows))
    alone = client.attention(*arrays, return_=model)
    np.testing.assert_allclose(alone.weights, whole[:, :, 1:3], atol=1e-6)
    assert set(alone.arrays) == {"weights"}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_the_largest_weights(client: AttentionClient, dtype: Any) -> None:
    arrays = [each.astype(dtype) for each in tensors()]
    whole = client.attention(*arrays).weights
    result = client.attention(*arrays, return_={"weights": {"heads": [1], "top_k": 4}})
    top = result.top_k
    order = np.argsort(-whole[:, [1]].astype(np.float64), axis=-1, kind="stable")[..., :4]
    np.testing.assert_array_equal(top.indices, order)
    np.testing.assert_array_equal(top.values, np.take_along_axis(whole[:, [1]], order, -1))
    rest = 1 - top.values.astype(np.float64).sum(-1)
    np.testing.assert_allclose(top.rest, rest, atol=2e-3 if dtype is np.float16 else 1e-6)
    assert top.indices.dtype == np.int32
    assert top.values.dtype == dtype
    assert top.rest.dtype == (np.float64 if dtype is np.float64 else np.float32)


def test_the_plan_of_a_call(client: AttentionClient) -> None:
    plan = client.attention(*tensors(), return_={"plan": True}).plan
    assert {name for step in plan.steps for name in step.computes} >= {"output", "weights"}
    assert plan.flops > 0
    assert plan.peak_bytes > 0


def test_what_was_not_asked_for_says_how_to_get_it(client: AttentionClient) -> None:
    result = client.attention(*ONE)
    cures = {
        "lse": "{'lse': True}",
        "entropy": "{'entropy': True}",
        "scores": "{'scores': 'raw'}",
        "present_key": "{'present': True}",
        "present_value": "{'present': True}",
        "top_k": "{'weights': {'top_k': 8}}",
        "plan": "{'plan': True}",
    }
    for name, cure in cures.items():
        with pytest.raises(NotReturnedError) as caught:
            getattr(result, name)
        assert str(caught.value) == (
            f"{name}: not asked for; call with return_={cure} (there: output, weights)"
        )
        return_: Any = eval(cure)
        assert hasattr(client.attention(*ONE, return_=return_), name)


def test_weights_where_only_the_largest_were_asked_for(client: AttentionClient) -> None:
    result = client.attention(*ONE, return_={"weights": {"top_k": 1}})
    with pytest.raises(NotReturnedError, match=r"top k of them only; use \.top_k"):
        _ = result.weights
    assert not hasattr(result, "weights")
    assert repr(result.top_k) == "TopK(indices=int32[1, 1], values=float32[1, 1], rest=float32[1])"
    assert "weights.indices=int32[1, 1]" in repr(result)


def test_what_no_module_gives(client: AttentionClient) -> None:
    size = client.module("mha").embed_dim
    result = client.module_attention("mha", np.ones((1, 2, size), np.float32))
    for name in ("lse", "top_k", "plan", "present_key"):
        with pytest.raises(NotReturnedError, match=f"{name}: modules give output and weights only"):
            getattr(result, name)
