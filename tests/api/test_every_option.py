"""Every option of attention, sent again and again: what is kept of a call is no other's.

Small calls that were seen before take short ways, and calls that wait are computed together.
An option that one of these forgets is right once, and then silently ignored.
"""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest

from attention_service.attention.engine import Engine
from attention_service.attention.sdpa import AttentionJob
from attention_wire import bodies
from attention_wire.schemas import AttentionRequest
from tests import reference

RNG = np.random.default_rng(41)
BATCH, HEADS, LENGTH, KEYS, SIZE = 2, 2, 4, 6, 3


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


TENSORS = {
    "query": normal(BATCH, HEADS, LENGTH, SIZE),
    "key": normal(BATCH, HEADS, KEYS, SIZE),
    "value": normal(BATCH, HEADS, KEYS, 2),
}
IDS = {
    "query_document_ids": np.array([[0, 0, 1, 1]] * BATCH),
    "key_document_ids": np.array([[0, 0, 0, 1, 1, 1]] * BATCH),
}
PAST = {"past_key": normal(BATCH, HEADS, 2, SIZE), "past_value": normal(BATCH, HEADS, 2, 2)}
ALIBI = {"alibi_slopes": np.array([0.5, 0.25], np.float32)}
CAUSAL = {"is_causal": True}

# Field → two sets of options that differ in it, and give different numbers.
TWO: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "attn_mask": ({}, {"attn_mask": RNG.random((LENGTH, KEYS)) < 0.6}),
    "is_causal": ({}, CAUSAL),
    "scale": ({"scale": 0.5}, {"scale": -1.5}),
    "softcap": ({}, {"softcap": 0.7}),
    "left_window_size": ({"left_window_size": 0}, {"left_window_size": 1}),
    "right_window_size": ({"right_window_size": 0}, {"right_window_size": 1}),
    "nonpad_kv_seqlen": (
        {"nonpad_kv_seqlen": np.array([KEYS, 3])},
        {"nonpad_kv_seqlen": np.array([3, KEYS])},
    ),
    "past_key": (PAST, {**PAST, "past_key": -PAST["past_key"]}),
    "past_value": (PAST, {**PAST, "past_value": -PAST["past_value"]}),
    "sinks": ({}, {"sinks": np.array([1.0, -1.0], np.float32)}),
    "alibi_slopes": ({}, ALIBI),
    "query_document_ids": (IDS, {**IDS, "query_document_ids": IDS["query_document_ids"][:, ::-1]}),
    "key_document_ids": (IDS, {**IDS, "key_document_ids": IDS["key_document_ids"][:, ::-1]}),
    "query_offset": ({**CAUSAL, "query_offset": 1}, {**CAUSAL, "query_offset": 2}),
    "key_offset": ({**CAUSAL, "key_offset": 0}, {**CAUSAL, "key_offset": -1}),
}
# What changes no number, or is tried elsewhere: heads of rank 3 are in the shape.
WITHOUT_NUMBERS = {"tensor_format", "softmax_precision", "q_num_heads", "kv_num_heads", "return_"}


def test_no_option_is_left_out() -> None:
    assert set(AttentionRequest.model_fields) == set(TWO) | set(TENSORS) | WITHOUT_NUMBERS


@pytest.mark.parametrize("media_type", [bodies.SAFETENSORS, bodies.JSON])
@pytest.mark.parametrize("name", TWO)
def test_an_option_counts_in_every_call(http: httpx.Client, name: str, media_type: str) -> None:
    outputs = [
        reference.attention(**{k: np.asarray(v) for k, v in TENSORS.items()}, **options).output
        for options in TWO[name]
    ]
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3
    for turn in (0, 0, 1, 1, 0, 1):
        body = bodies.write(media_type, {**TENSORS, **TWO[name][turn]}, "request")
        headers = {"Content-Type": media_type}
        response = http.post("/v1/attention", content=bytes(body), headers=headers)
        assert response.status_code == 200, response.text
        found = bodies.read(media_type, response.content, "response").values["output"]
        np.testing.assert_allclose(np.asarray(found), outputs[turn], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TWO)
def test_calls_that_differ_in_an_option_are_not_computed_together(name: str) -> None:
    engine = Engine("cpu", 1)
    keys = [
        AttentionJob.of(AttentionRequest.model_validate({**TENSORS, **options}), engine).batch_key
        for options in TWO[name]
    ]
    assert None in keys or keys[0] != keys[1]
