"""Requests: every wrong field is named, with what would be right."""

from __future__ import annotations

import base64
import re
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
        (AttentionRequest, GOOD | {"softmax_scale": 1}, ("softmax_scale",), "'scale'?"),
        (AttentionRequest, GOOD | {"lse": True}, ("lse",), "did you mean 'return.lse'?"),
        (AttentionRequest, GOOD | {"heads": [0]}, ("heads",), "'return.weights.heads'?"),
        (AttentionRequest, GOOD | {"return": {"top_k": 1}}, ("return", "top_k"), "weights.top_k'?"),
        (AttentionRequest, GOOD | {"text": "a"}, ("text",), "of POST /v1/text/attention"),
        (AttentionRequest, GOOD | {"enable_gqa": True}, ("enable_gqa",), "leave it out: heads are"),
        (
            AttentionRequest,
            GOOD | {"return": {"weights": {"k": 1}}},
            ("return", "weights", "k"),
            "did you mean 'top_k'?",
        ),
        (ModuleRequest, {"query": [[[1]]], "softcap": 1}, ("softcap",), "of POST /v1/attention"),
        (
            TextRequest,
            {"text": "a", "value": [[1]]},
            ("value",),
            "'value' is a field of POST /v1/a",
        ),
        (
            TextRequest,
            {"text": "a", "return": {"heads": [0]}},
            ("return", "heads"),
            "did you mean 'heads', beside 'return'?",
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


def test_a_name_that_is_another_s_is_told_before_the_field_that_is_missing_for_it() -> None:
    problem = refused(AttentionRequest, {"q": [[1]], "key": [[1]], "value": [[1]]})
    assert problem.code == Code.UNKNOWN_FIELD
    assert problem.detail == "q: unknown field; did you mean 'query'? (1 more; see errors)"


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


OBJECT = "must be an object with any of output, weights, lse, "
WRONG = [
    ("is_causal", 1, "must be true or false; got 1"),
    ("is_causal", "true", "must be true or false; got the string 'true'"),
    ("is_causal", None, "must be true or false; got null"),
    ("scale", "1", "must be a number; got the string '1'"),
    ("scale", True, "must be a number; got true"),
    ("scale", float("inf"), "must be a finite number; got Infinity"),
    ("scale", [1], "must be a number; got a list"),
    ("scale", np.zeros(1), "must be a number; got a tensor"),
    ("softcap", -1, "must be at least 0; got -1"),
    ("q_num_heads", 0, "must be at least 1; got 0"),
    ("q_num_heads", -1, "must be at least 1; got -1"),
    ("q_num_heads", 1.0, "must be an integer; got 1.0"),
    ("q_num_heads", "8", "must be an integer; got the string '8'"),
    ("q_num_heads", True, "must be an integer; got true"),
    ("kv_num_heads", 2**63, "must be at most 65536; got 9223372036854775808"),
    ("tensor_format", "json", "must be 'list' or 'base64'; got the string 'json'"),
    ("tensor_format", None, "must be 'list' or 'base64'; got null"),
    ("tensor_format", ["list"], "must be 'list' or 'base64'; got a list"),
    ("return", None, OBJECT),
    ("return", True, OBJECT),
    ("return", ["lse"], OBJECT),
    ("return", "output", OBJECT),
]


@pytest.mark.parametrize(("name", "value", "says"), WRONG)
def test_a_field_of_the_wrong_type_or_range_is_named(name: str, value: object, says: str) -> None:
    problem = refused(AttentionRequest, GOOD | {name: value})
    assert problem.code == Code.INVALID_FIELD
    assert [error.loc[0] for error in problem.errors] == [name]
    assert problem.errors[0].msg.startswith(says)


NOTHINGS: list[object] = [None, True, -1, 2**40, 1.5, "", "x", [], [[]], [{}], ["x"], {}]


@pytest.mark.parametrize("model", [AttentionRequest, ModuleRequest, TextRequest])
def test_no_words_of_pydantic_s_are_told(model: type[BaseModel]) -> None:
    told = []
    for loc in places(model):
        for nothing in NOTHINGS:
            fields: Any = nothing
            for name in reversed(loc):
                fields = {name: fields}
            try:
                validate(model, Fields(fields, only_numbers=False))
            except ProblemError as problem:
                told += [error.msg for error in problem.errors]
    assert len(told) > 100
    assert not [msg for msg in told if re.search("Input should|nvalid|valid |Value error", msg)]


def places(model: type[BaseModel]) -> list[tuple[str, ...]]:
    inner = {"return": ("weights", "output", "scores", "x")}
    selection = ("heads", "queries", "reduce", "top_k", "value_weighted")
    names = [info.alias or name for name, info in model.model_fields.items()]
    return [
        *((name,) for name in names),
        *(("return", name) for name in inner["return"]),
        *(("return", "weights", name) for name in selection),
        *(("return", "weights", "queries", name) for name in ("start", "stop")),
    ]


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
