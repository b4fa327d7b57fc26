"""Tensors in JSON that do not fit: each is refused with its field, what is wrong and the cure."""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np
import pytest

from tests.api.support import ATTENTION, GOOD, GOOD_WEIGHTS, Caller, Case, check_problem


def zeros(*shape: int, dtype: str = "float32") -> dict[str, Any]:
    """A tensor object of any shape."""
    size = math.prod(shape) * (8 if dtype.endswith("64") else 4)
    return {"dtype": dtype, "shape": shape, "data": base64.b64encode(bytes(size)).decode()}


def encoded(data: object, shape: object = (1, 2), dtype: object = "float32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data": data}


def three(query: Any, key: Any, value: Any, **others: Any) -> dict[str, Any]:
    return {"query": query, "key": key, "value": value, **others}


TENSOR = "invalid_tensor"
LISTS = [
    Case("ragged", {"query": [[1, 0], [0]]}, 422, TENSOR, "query",
         ("ragged", "[1] holds 1 elements", "[0] holds 2", "one length")),
    Case("ragged_deep", {"key": [[1, [0]], [0, 1]]}, 422, TENSOR, "key", ("ragged", "one length")),
    Case("ragged_late", {"value": [[1, 2], [3, 4, 5]]}, 422, TENSOR, "value", ("ragged", "[1]")),
    Case("a_number", {"query": 1}, 422, TENSOR, "query", ("nested list", "got a number")),
    Case("a_string", {"query": "AACAPw=="}, 422, TENSOR, "query", ("nested list", "a string")),
    Case("null", {"query": None}, 422, TENSOR, "query", ("nested list", "null")),
    Case("null_inside", {"query": [[1, None]]}, 422, TENSOR, "query", ("null",)),
    Case("bool_inside", {"query": [[1, True]]}, 422, TENSOR, "query", ("true or false",)),
    Case("object_inside", {"query": [[1, {}]]}, 422, TENSOR, "query", ("an object",)),
    Case("string_inside", {"query": [[1, "0"]]}, 422, TENSOR, "query", ("'0'", "'Infinity'")),
    Case("bools", {"query": [[True, False]]}, 422, TENSOR, "query", ("bool", "float32")),
    Case("missing", {"value": ...}, 422, "missing_field", "value", ("is missing",)),
]  # fmt: skip

RANKS_AND_SHAPES = [
    Case("rank_0", {"query": encoded("AACAPw==", ())}, 422, TENSOR, "query",
         ("rank 0", "rank 2, 3 or 4")),
    Case("rank_1", {"query": [1, 0]}, 422, TENSOR, "query", ("rank 1", "[2]", "rank 2, 3 or 4")),
    Case("rank_5", {"query": zeros(1, 1, 1, 2, 2)}, 422, TENSOR, "query",
         ("rank 5", "[1, 1, 1, 2, 2]")),
    Case("key_rank", {"key": [[[1, 0]]]}, 422, TENSOR, "key",
         ("rank 3", "[1, 1, 2]", "rank 2", "[2, 2]", "one rank")),
    Case("value_rank", {"value": [1, 2]}, 422, TENSOR, "value", ("[2]", "[2, 2]", "one rank")),
    Case("head_size", {"key": [[1, 0, 0]] * 2}, 422, TENSOR, "key",
         ("[2, 3]", "[2, 2]", "head size")),
    Case("length", {"value": [[1, 2]] * 3}, 422, TENSOR, "value", ("[3, 2]", "[2, 2]", "length")),
    Case("batch", three(zeros(2, 1, 3, 4), zeros(3, 1, 3, 4), zeros(3, 1, 3, 4)), 422, TENSOR,
         "key", ("[3, 1, 3, 4]", "[2, 1, 3, 4]", "batch")),
    Case("value_batch", three(zeros(2, 1, 3, 4), zeros(2, 1, 3, 4), zeros(1, 1, 3, 4)), 422,
         TENSOR, "value", ("[1, 1, 3, 4]", "[2, 1, 3, 4]", "batch")),
    Case("value_heads", three(zeros(1, 4, 3, 4), zeros(1, 2, 3, 4), zeros(1, 4, 3, 4)), 422,
         TENSOR, "value", ("[1, 4, 3, 4]", "[1, 2, 3, 4]", "heads")),
    Case("no_heads", three(zeros(1, 0, 3, 4), zeros(1, 0, 3, 4), zeros(1, 0, 3, 4)), 422, TENSOR,
         "query", ("[1, 0, 3, 4]", "at least one head")),
    Case("no_head_size", three(zeros(1, 1, 3, 0), zeros(1, 1, 3, 0), zeros(1, 1, 3, 4)), 422,
         TENSOR, "query", ("[1, 1, 3, 0]", "head size of 1")),
]  # fmt: skip

HEADS = [
    Case("do_not_divide", three(zeros(1, 3, 2, 4), zeros(1, 2, 2, 4), zeros(1, 2, 2, 4)), 422,
         TENSOR, "key", ("[1, 2, 2, 4]", "[1, 3, 2, 4]", "divide")),
    Case("second_to_last", three(zeros(2, 16, 8, 4), zeros(2, 24, 2, 4), zeros(2, 24, 2, 4)), 422,
         TENSOR, "key", ("do not divide", "[B,L,H,D] swap axes 1 and 2")),
    Case("columns", three(zeros(1, 2, 7), zeros(1, 2, 4), zeros(1, 2, 4), q_num_heads=2,
                          kv_num_heads=1),
         422, TENSOR, "query", ("7 columns", "[1, 2, 7]", "q_num_heads=2")),
    Case("key_columns", three(zeros(1, 2, 8), zeros(1, 2, 9), zeros(1, 2, 4), q_num_heads=2,
                              kv_num_heads=2),
         422, TENSOR, "key", ("9 columns", "kv_num_heads=2")),
    Case("one_not_given", three(zeros(1, 2, 8), zeros(1, 2, 8), zeros(1, 2, 8), q_num_heads=2),
         422, "missing_field", "kv_num_heads", ("rank-3",)),
    Case("with_rank_2", {"q_num_heads": 1}, 422, "invalid_field", "q_num_heads",
         ("rank 3", "[2, 2]")),
    Case("zero", {"q_num_heads": 0}, 422, "invalid_field", "q_num_heads",
         ("at least 1",)),
    Case("negative", {"kv_num_heads": -1}, 422, "invalid_field", "kv_num_heads", ("at least 1",)),
    Case("too_many", {"q_num_heads": 10**6}, 422, "invalid_field", "q_num_heads", ("65536",)),
    Case("past_64_bits", {"q_num_heads": 10**19}, 422, "invalid_field", "q_num_heads", ("65536",)),
    Case("a_fraction", {"q_num_heads": 1.5}, 422, "invalid_field", "q_num_heads", ("integer",)),
    Case("a_bool", {"q_num_heads": True}, 422, "invalid_field", "q_num_heads", ("integer",)),
]  # fmt: skip

MASKS = [
    Case("ints", {"attn_mask": zeros(2, 2, dtype="int64")}, 422, TENSOR, "attn_mask",
         ("int64", "send bool")),
    Case("int32", {"attn_mask": zeros(2, 2, dtype="int32")}, 422, TENSOR, "attn_mask",
         ("int32", "float bias")),
    Case("zeros_and_ones", {"attn_mask": [[1, 0], [1, 1]]}, 422, TENSOR, "attn_mask",
         ("true and false", "float bias", "object")),
    Case("ones", {"attn_mask": [[1.0, 1.0]]}, 422, TENSOR, "attn_mask", ("true and false",)),
    Case("mixed", {"attn_mask": [[True, 0]]}, 422, TENSOR, "attn_mask", ("true or false",)),
    Case("too_wide", {"attn_mask": [[True] * 3]}, 422, TENSOR, "attn_mask",
         ("[1, 3]", "[1, 1, 2, 2]", "broadcast")),
    Case("rows", {"attn_mask": [[True, True]] * 3}, 422, TENSOR, "attn_mask",
         ("[3, 2]", "[1, 1, 2, 2]")),
    Case("rank_0", {"attn_mask": encoded("AAAAAA==", ())}, 422, TENSOR, "attn_mask", ("rank 0",)),
    Case("rank_5", {"attn_mask": zeros(1, 1, 1, 2, 2)}, 422, TENSOR, "attn_mask", ("rank 5",)),
    Case("nan", {"attn_mask": [[0, "NaN"]]}, 422, "non_finite", "attn_mask",
         ("[0,1] of its shape [1, 2]", "-Infinity")),
    Case("padding", {**three(*[zeros(2, 1, 3, 4)] * 3), "attn_mask": [[True] * 3] * 2}, 422, TENSOR,
         "attn_mask", ("[2, 1, 3, 3]; for a mask of each batch element send [2, 1, 1, 3]",)),
    Case("batch", {**three(*[zeros(2, 4, 3, 4)] * 3), "attn_mask": zeros(2, 3, 3)}, 422, TENSOR,
         "attn_mask", ("for a mask of each batch element send [2, 1, 3, 3]",)),
    Case("plus_infinity", {"attn_mask": [["Infinity", 0]]}, 422, "non_finite", "attn_mask",
         ("-Infinity",)),
    Case("bool_bytes", {"attn_mask": encoded("AQI=", (1, 2), "bool")}, 400, "malformed_tensor",
         "attn_mask", ("0 or 1",)),
    Case("bool_of_numbers", {"attn_mask": encoded([1, 0], (1, 2), "bool")}, 422, TENSOR,
         "attn_mask", ("bool", "a number")),
]  # fmt: skip

KNOWN = "known are float16, bfloat16, float32, float64, bool, int32, int64"
DTYPES = [
    Case("unknown", {"query": encoded("AAA=", dtype="float8")}, 422, TENSOR, "query",
         ("'float8'", KNOWN)),
    Case("other_case", {"query": encoded([1, 0], dtype="Float32")}, 422, TENSOR, "query", (KNOWN,)),
    Case("a_number", {"query": encoded([1, 0], dtype=1)}, 422, TENSOR, "query", (KNOWN,)),
    Case("a_list", {"query": encoded([1, 0], dtype=["float32"])}, 422, TENSOR, "query", (KNOWN,)),
    Case("ints", {"key": zeros(2, 2, dtype="int64")}, 422, TENSOR, "key", ("int64", "float16")),
    Case("two", {"key": zeros(2, 2, dtype="float64")}, 422, TENSOR, "key",
         ("float64", "float32", "one dtype")),
    Case("value_two", {"value": zeros(2, 2, dtype="float64")}, 422, TENSOR, "value",
         ("one dtype",)),
]  # fmt: skip

MALFORMED = "malformed_tensor"
BASE64 = [
    Case("short", {"query": encoded("AACAPw==")}, 400, MALFORMED, "query",
         ("4 bytes", "[1, 2] takes 8")),
    Case("long", {"query": encoded("AACAPwAAAAAAAAAA")}, 400, MALFORMED, "query",
         ("12 bytes", "takes 8")),
    Case("empty", {"query": encoded("")}, 400, MALFORMED, "query", ("0 bytes", "takes 8")),
    Case("not_padded", {"query": encoded("AACAPwAAAAA")}, 400, MALFORMED, "query",
         ("padded with =",)),
    Case("url_alphabet", {"query": encoded("AACA_wAAAA-=")}, 400, MALFORMED, "query",
         ("alphabet with + and /",)),
    Case("line_break", {"query": encoded("AACAPw\nAAAAA=")}, 400, MALFORMED, "query", ("base64",)),
    Case("not_ascii", {"query": encoded("AACAPwAAAAé=")}, 400, MALFORMED, "query", ("base64",)),
    Case("after_padding", {"query": encoded("AACAPwAAAAA=AA==")}, 400, MALFORMED, "query",
         ("base64",)),
    Case("no_string", {"query": encoded(7)}, 422, TENSOR, "query", ("base64 string or a list",)),
    Case("list_short", {"query": encoded([1])}, 400, MALFORMED, "query",
         ("1 elements", "[1, 2]: 2")),
    Case("list_nested", {"query": encoded([[1], [0]])}, 400, MALFORMED, "query",
         ("[2, 1]", "[1, 2]")),
    Case("list_ragged", {"query": encoded([[1, 0], [1]])}, 422, TENSOR, "query", ("ragged",)),
    Case("no_data", {"query": {"dtype": "float32", "shape": [1, 2]}}, 422, TENSOR, "query",
         ("exactly", "dtype, shape and data")),
    Case("other_member", {"query": {**encoded([1, 0]), "order": "C"}}, 422, TENSOR, "query",
         ("exactly", "order")),
    Case("empty_object", {"query": {}}, 422, TENSOR, "query", ("exactly", "none")),
]  # fmt: skip

SHAPES = [
    Case("negative", {"query": encoded([1, 0], (-1, 2))}, 422, TENSOR, "query",
         ("0 or more", "-1")),
    Case("twice_negative", {"query": encoded([1, 0], (-1, -2))}, 422, TENSOR, "query",
         ("0 or more",)),
    Case("huge", {"query": encoded("", (2**31, 2**31))}, 422, TENSOR, "query",
         ("too large", "2**40")),
    Case("past_64_bits", {"query": encoded("", (2**63, 2))}, 422, TENSOR, "query", ("too large",)),
    Case("wraps_to_0", {"query": encoded("", (2**32, 2**32))}, 422, TENSOR, "query",
         ("too large",)),
    Case("huge_and_empty", {"query": encoded("", (0, 2**62))}, 422, TENSOR, "query",
         ("too large",)),
    Case("past_every_int", {"query": encoded("", (10**25, 2))}, 422, TENSOR, "query",
         ("0 or more",)),
    Case("fraction", {"query": encoded([1, 0], (1.0, 2))}, 422, TENSOR, "query",
         ("0 or more", "1.0")),
    Case("bools", {"query": encoded([1, 0], (True, 2))}, 422, TENSOR, "query", ("0 or more",)),
    Case("words", {"query": encoded([1, 0], ("1", "2"))}, 422, TENSOR, "query", ("integers",)),
    Case("a_number", {"query": encoded([1, 0], 2)}, 422, TENSOR, "query", ("list of integers",)),
    Case("a_string", {"query": encoded([1, 0], "12")}, 422, TENSOR, "query", ("list of integers",)),
    Case("17_dimensions", {"query": encoded([1], [1] * 17)}, 422, TENSOR, "query",
         ("17", "at most 16")),
]  # fmt: skip

FINITE = "non_finite"
VALUES = [
    Case("nan_in_query", {"query": [["NaN", 0]]}, 422, FINITE, "query",
         ("NaN at [0,0] of its shape [1, 2]", "finite numbers")),
    Case("infinity_in_query", {"query": [[0, "-Infinity"]]}, 422, FINITE, "query",
         ("finite numbers",)),
    Case("past_float32", {"query": [[0, 1e39]]}, 422, FINITE, "query",
         ("infinity at [0,1] of its shape [1, 2], or a number past the range of its dtype",)),
    Case("past_float16", {**{name: encoded([1, 0], dtype="float16") for name in GOOD},
                          "query": encoded([1, 7e4], dtype="float16")}, 422, FINITE,
         "query", ("[0,1] of its shape [1, 2], or a number past the range",)),
    Case("nan_of_rank_3", {"key": [[[0, 0, 0, 0], [0, 0, "NaN", 0]]], "query": zeros(1, 1, 4),
                           "value": zeros(1, 2, 4), "q_num_heads": 2, "kv_num_heads": 2},
         422, FINITE, "key", ("NaN at [0,1,2] of its shape [1, 2, 4]",)),
    Case("nan_in_past", {"past_key": [[[["NaN", 0]]]], "past_value": zeros(1, 1, 1, 2)}, 422,
         FINITE, "past_key", ("at [0,0,0,0] of its shape [1, 1, 1, 2]",)),
    Case("nan_after_past", {"past_key": zeros(1, 1, 1, 2), "past_value": zeros(1, 1, 1, 2),
                            "value": [[0, 0], [0, "NaN"]]},
         422, FINITE, "value", ("at [1,1] of its shape [2, 2]",)),
    Case("nan_in_base64", {"query": encoded("AADAfwAAAAA=")}, 422, FINITE, "query",
         ("finite numbers",)),
    Case("nan_in_key", {"key": [[1, 0], ["NaN", 1]]}, 422, FINITE, "key", ("mask that row",)),
    Case("infinity_in_value", {"value": [["Infinity", 0], [0, 1]]}, 422, FINITE, "value",
         ("mask that row",)),
    Case("attended_by_one", {"key": [["NaN", 0], [0, 1]],
         "attn_mask": [[False, True], [True, True]]},
         422, FINITE, "key", ("mask that row for every query",)),
    Case("scale_too_large", {"scale": 1e307, "query": [[1e3, 0]]}, 422, "overflow", "query",
         ("smaller scale",)),
    Case("scale_in_words", {"scale": "NaN"}, 422, "invalid_field", "scale", ("number",)),
    Case("scale_a_list", {"scale": [1]}, 422, "invalid_field", "scale", ("number",)),
    Case("causal_a_number", {"is_causal": 1}, 422, "invalid_field", "is_causal",
         ("true or false; got 1",)),
    Case("format", {"tensor_format": "hex"}, 422, "invalid_field", "tensor_format",
         ("'list'", "'base64'")),
    Case("format_null", {"tensor_format": None}, 422, "invalid_field", "tensor_format",
         ("'list'",)),
]  # fmt: skip

GROUPS = {
    "list": LISTS,
    "shape": RANKS_AND_SHAPES,
    "heads": HEADS,
    "mask": MASKS,
    "dtype": DTYPES,
    "base64": BASE64,
    "shape_object": SHAPES,
    "value": VALUES,
}
CASES = [
    pytest.param(case, id=f"{group}-{case.name}")
    for group, cases in GROUPS.items()
    for case in cases
]


@pytest.mark.parametrize("case", CASES)
def test_is_refused(caller: Caller, case: Case) -> None:
    answer = caller.post(ATTENTION, case.fields(), X_Request_ID=f"case-{case.name}")
    problem = check_problem(answer, case.status, case.code, case.field, says=case.says)
    assert problem["request_id"] == f"case-{case.name}"
    assert problem["detail"].startswith(f"{case.field}: ")


def test_every_wrong_field_is_named(caller: Caller) -> None:
    fields = {**GOOD, "key": [[1], [0, 1]], "scale": "2", "is_causal": None, "mask": 1}
    answer = caller.post(ATTENTION, fields)
    wrong = ("is_causal", "scale", "key", "mask")
    problem = check_problem(answer, 422, "invalid_field", *wrong, says=("3 more",))
    assert "did you mean 'attn_mask'" in problem["errors"][-1]["msg"]


def test_both_numbers_of_heads_are_asked_for_at_once(caller: Caller) -> None:
    answer = caller.post(ATTENTION, three(*[zeros(1, 2, 8)] * 3))
    says = ("rank-3", "[B,L,H·D] = [1, 2, 8]", "as rank 4", "1 more")
    check_problem(answer, 422, "missing_field", "q_num_heads", "kv_num_heads", says=says)


def test_rows_that_none_attends_may_hold_anything(caller: Caller) -> None:
    fields = {
        **GOOD,
        "key": [*GOOD["key"], ["NaN", "Infinity"]],
        "value": [*GOOD["value"], ["-Infinity", "NaN"]],
        "attn_mask": [[True, True, False]],
    }
    answer = caller.post(ATTENTION, fields)
    assert answer.status_code == 200, answer.text
    expected = np.concatenate([GOOD_WEIGHTS, np.zeros((2, 1))], axis=1)
    np.testing.assert_allclose(answer.json()["weights"], expected, atol=1e-6)
    np.testing.assert_allclose(
        answer.json()["output"], GOOD_WEIGHTS @ np.array(GOOD["value"]), atol=1e-6
    )


@pytest.mark.parametrize(
    ("query", "key", "weights"),
    [
        (zeros(0, 2), [[1, 0]], []),
        ([[1, 0], [0, 1]], zeros(0, 2), [[], []]),
    ],
    ids=["no_queries", "no_keys"],
)
def test_empty_sequences_are_served(
    caller: Caller, query: object, key: object, weights: object
) -> None:
    value = zeros(0, 2) if weights else [[5, 6]]
    answer = caller.post(ATTENTION, {"query": query, "key": key, "value": value})
    assert answer.status_code == 200, answer.text
    assert answer.json()["weights"] == weights
    assert answer.json()["output"] == ([[0, 0], [0, 0]] if weights else [])
