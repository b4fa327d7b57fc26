"""Requests: every wrong field is named, with what would be right."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel

from attention_wire.bodies import Fields
from attention_wire.problems import Code, ProblemError
from attention_wire.schemas import AttentionRequest, ModuleRequest, TextRequest
from attention_wire.validation import validate

GOOD: dict[str, Any] = {"query": [[1, 2]], "key": [[1, 2]], "value": [[3]]}


def refused(model: type[BaseModel], values: dict[str, Any]) -> ProblemError:
    with pytest.raises(ProblemError) as caught:
        validate(model, Fields(values, only_numbers=False))
    return caught.value


def test_a_request_holds_arrays_and_its_defaults() -> None:
    request = validate(AttentionRequest, Fields(GOOD, only_numbers=True))
    assert request.query.dtype == np.float32
    assert request.query.tolist() == [[1, 2]]
    assert request.attn_mask is None
    assert request.scale is None
    assert not request.is_causal
    assert request.return_.output
    assert request.return_.weights


@pytest.mark.parametrize(
    ("model", "values", "loc", "says"),
    [
        (AttentionRequest, GOOD | {"queri": 1}, ("queri",), "did you mean 'query'?"),
        (AttentionRequest, GOOD | {"mask": 1}, ("mask",), "did you mean 'attn_mask'?"),
        (AttentionRequest, GOOD | {"is_casual": True}, ("is_casual",), "'is_causal'"),
        (AttentionRequest, GOOD | {"return_": {}}, ("return_",), "did you mean 'return'?"),
        (
            AttentionRequest,
            GOOD | {"zzz": 1},
            ("zzz",),
            "known are alibi_slopes, attn_mask, is_causal, key,",
        ),
        (TextRequest, {"text": "a", "texts": ""}, ("texts",), "did you mean 'text'?"),
        (TextRequest, {"text": "a", "return": {"weight": 1}}, ("return", "weight"), "'weights'"),
        (TextRequest, {"text": "a", "return": {"zzz": 1}}, ("return", "zzz"), "known are blocks, "),
    ],
)
def test_an_unknown_field_is_told_the_nearest_name(
    model: type[BaseModel], values: dict[str, Any], loc: tuple[str, ...], says: str
) -> None:
    problem = refused(model, values)
    assert problem.code == Code.UNKNOWN_FIELD
    assert [error.loc for error in problem.errors] == [loc]
    assert says in problem.errors[0].msg
    assert ".".join(loc) in problem.detail


def test_what_is_missing_is_named() -> None:
    problem = refused(AttentionRequest, {"query": [[1]]})
    assert problem.code == Code.MISSING_FIELD
    assert [error.loc for error in problem.errors] == [("key",), ("value",)]
    assert problem.detail == "key: is missing (1 more; see errors)"


def test_a_tensor_that_cannot_be_read_comes_before_fields_that_are_wrong() -> None:
    broken = {"dtype": "float32", "shape": [1], "data": "!"}
    problem = refused(AttentionRequest, GOOD | {"scale": "x", "value": broken, "zzz": 1})
    assert problem.code == Code.MALFORMED_TENSOR
    assert {error.loc for error in problem.errors} == {("value",), ("scale",), ("zzz",)}


def test_a_thousand_wrong_fields_are_not_all_told_back() -> None:
    problem = refused(TextRequest, {"text": "a"} | {f"{i}{'x' * 5000}": 1 for i in range(1000)})
    assert problem.code == Code.UNKNOWN_FIELD
    assert len(problem.errors) == 20
    assert "999 more" in problem.detail
    assert sum(len(str(error)) for error in problem.errors) < 20_000


WRONG = [
    ("is_causal", 1),
    ("is_causal", "true"),
    ("is_causal", None),
    ("scale", "1"),
    ("scale", True),
    ("scale", float("inf")),
    ("scale", [1]),
    ("q_num_heads", 0),
    ("q_num_heads", -1),
    ("q_num_heads", 1.0),
    ("q_num_heads", "8"),
    ("q_num_heads", True),
    ("kv_num_heads", 2**63),
    ("tensor_format", "json"),
    ("tensor_format", None),
    ("tensor_format", ["list"]),
    ("return", None),
    ("return", True),
    ("return", []),
    ("return", "output"),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_field_of_the_wrong_type_or_range_is_named(name: str, value: object) -> None:
    problem = refused(AttentionRequest, GOOD | {name: value})
    assert problem.code == Code.INVALID_FIELD
    assert [error.loc[0] for error in problem.errors] == [name]


@pytest.mark.parametrize("value", [1, "true", None])
def test_what_to_return_is_told_in_booleans(value: object) -> None:
    problem = refused(AttentionRequest, GOOD | {"return": {"weights": value}})
    assert problem.errors[0].loc == ("return", "weights")


@pytest.mark.parametrize("name", ["text", "text_pair", "layers", "heads", "module", "truncate"])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 3)])
def test_a_tensor_is_no_other_field(name: str, shape: tuple[int, ...]) -> None:
    problem = refused(TextRequest, {"text": "a", name: np.zeros(shape, np.float32)})
    assert problem.code == Code.INVALID_FIELD
    assert [error.loc for error in problem.errors] == [(name,)]
    assert "truth value" not in problem.detail


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ([], "holds no text"),
        ([1], "a string or a list of strings"),
        (["a", None], "a string or a list of strings"),
        (None, "a string or a list of strings"),
        (1, "a string or a list of strings"),
        ({"text": "a"}, "a string or a list of strings"),
        ([["a"]], "a string or a list of strings"),
    ],
)
def test_text_is_a_string_or_several(text: object, says: str) -> None:
    problem = refused(TextRequest, {"text": text})
    assert problem.errors[0].loc == ("text",)
    assert says in problem.detail


@pytest.mark.parametrize("value", ["", ["a"] * 3])
def test_empty_texts_and_several_are_taken(value: object) -> None:
    assert validate(TextRequest, Fields({"text": value}, only_numbers=False)).text == value


@pytest.mark.parametrize("indices", [[], [-1], [0, 0], [1.0], [True], "ALL", 3, None, ["0"], [[0]]])
@pytest.mark.parametrize("name", ["layers", "heads"])
def test_layers_and_heads_are_indices(name: str, indices: object) -> None:
    problem = refused(TextRequest, {"text": "a", name: indices})
    assert [error.loc for error in problem.errors] == [(name,)]


# --- Masks -----------------------------------------------------------------------------


def tensor(dtype: str, data: list[Any]) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [len(data)], "data": data}


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        ([0, 1], "write true and false"),
        ([[1, 1], [1, 0]], "write true and false"),
        ([1.0], "write true and false"),
        (tensor("int32", [0, 1]), "a mask of int32 could mean"),
        (tensor("int64", [5]), "a mask of int64 could mean"),
        (np.ones(2, np.int64), "a mask of int64 could mean"),
        ([True, 1], "cannot hold true or false"),
        (True, "expected a nested list"),
    ],
    ids=str,
)
@pytest.mark.parametrize("model", [AttentionRequest, ModuleRequest])
def test_a_mask_that_could_mean_two_things_is_refused_with_the_cure(
    model: type[BaseModel], mask: object, says: str
) -> None:
    problem = refused(model, GOOD | {"attn_mask": mask})
    assert problem.code == Code.INVALID_TENSOR
    assert [error.loc for error in problem.errors] == [("attn_mask",)]
    assert says in problem.errors[0].msg


@pytest.mark.parametrize(
    ("mask", "dtype"),
    [
        ([True, False], "bool"),
        ([0, 0], "float32"),  # a bias of nothing, whichever way it is read
        ([0, -1], "float32"),
        ([0, "-Infinity"], "float32"),
        ([0.5, 1], "float32"),
        (tensor("float32", [0, 1]), "float32"),
        (tensor("bfloat16", [0, 1]), "bfloat16"),
        (tensor("float64", [1]), "float64"),
        (np.ones(2, np.float16), "float16"),
        (tensor("bool", [True]), "bool"),
        ([], "float32"),
    ],
    ids=str,
)
def test_a_mask_is_bool_or_a_float_bias(mask: object, dtype: str) -> None:
    request = validate(AttentionRequest, Fields(GOOD | {"attn_mask": mask}, only_numbers=False))
    assert request.attn_mask is not None
    assert request.attn_mask.dtype.name == dtype


@pytest.mark.parametrize(
    "value", [[[True]], tensor("bool", [True]), tensor("int32", [1]), np.ones(1, np.int64)], ids=str
)
@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_query_key_and_value_are_floats(name: str, value: object) -> None:
    problem = refused(AttentionRequest, GOOD | {name: value})
    assert problem.code == Code.INVALID_TENSOR
    assert [error.loc for error in problem.errors] == [(name,)]
    assert "send one of float16, bfloat16, float32, float64" in problem.detail


def test_a_message_may_hold_braces() -> None:
    problem = refused(AttentionRequest, GOOD | {"key": tensor("{kind}", [1])})
    assert "'{kind}'" in problem.detail


def test_base64_of_any_float_is_taken() -> None:
    raw = base64.b64encode(np.ones(2, "<f8").tobytes()).decode()
    value = {"dtype": "float64", "shape": [1, 2], "data": raw}
    request = validate(AttentionRequest, Fields(GOOD | {"query": value}, only_numbers=True))
    assert request.query.tolist() == [[1, 1]]
