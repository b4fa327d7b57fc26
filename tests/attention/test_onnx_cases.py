"""Every backend case of the ONNX operator `Attention`, replayed over HTTP."""

from __future__ import annotations

import warnings
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
from onnx.backend.test.case.test_case import TestCase

from tests.attention.forms import post
from tests.reference import Array

INPUTS = (
    "query",
    "key",
    "value",
    "attn_mask",
    "past_key",
    "past_value",
    "nonpad_kv_seqlen",
)
# Attribute of the operator → field of the request; the others have the same name.
ATTRIBUTES = frozenset(
    {
        "scale",
        "softcap",
        "softmax_precision",
        "q_num_heads",
        "kv_num_heads",
        "left_window_size",
        "right_window_size",
    }
)
# qk_matmul_output_mode → where the answer holds qk_matmul_output, and what asks for it.
MATMUL_OUTPUTS: list[tuple[str, dict[str, Any]]] = [
    ("scores", {"scores": "raw", "weights": False}),
    ("scores", {"scores": "softcap", "weights": False}),
    ("scores", {"scores": "masked", "weights": False}),
    ("weights", {"weights": True}),
]
HALVES = ("float16", "bfloat16")


def collect() -> list[TestCase]:
    """The cases, without their expansions into other operators."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of casts in the cases of other operators
        from onnx.backend.test.case.node import collect_testcases

        found = collect_testcases("Attention")
    return [case for case in found if "_expanded" not in case.name]


CASES = collect()


def request_of(node: onnx.NodeProto, inputs: list[Array]) -> tuple[dict[str, Any], list[str]]:
    """The request's fields, and the answer's field for each output of the node."""
    given = iter(inputs)
    fields: dict[str, Any] = {
        name: next(given) for name, there in zip(INPUTS, node.input, strict=False) if there
    }
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    fields["is_causal"] = bool(attributes.pop("is_causal", 0))
    place, asked = MATMUL_OUTPUTS[attributes.pop("qk_matmul_output_mode", 0)]
    assert set(attributes) <= ATTRIBUTES
    outputs = dict(
        zip(("output", "present_key", "present_value", place), node.output, strict=False)
    )
    wanted = [name for name, there in outputs.items() if there]
    fields["return"] = dict(asked) if place in wanted else {"weights": False}
    fields["return"]["present"] = "present_key" in wanted
    return fields | attributes, wanted


def test_there_are_as_many_cases_as_the_operator_has() -> None:
    assert len({case.name for case in CASES}) == len(CASES) == 93


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.removeprefix("test_attention_"))
def test_backend_case(http: httpx.Client, case: TestCase) -> None:
    (node,) = case.model.graph.node
    ((inputs, outputs),) = case.data_sets
    fields, names = request_of(node, inputs)
    answer = post(http, fields, "safetensors")
    assert set(names) <= set(answer)
    for name, expected in zip(names, outputs, strict=True):
        actual = answer[name]
        assert actual.shape == expected.shape, name
        assert actual.dtype == expected.dtype, name
        is_half = expected.dtype.name in HALVES
        np.testing.assert_allclose(
            actual.astype(np.float64),
            expected.astype(np.float64),
            rtol=1e-2 if is_half else case.rtol,
            atol=1e-2 if is_half else case.atol,
            err_msg=name,
        )
