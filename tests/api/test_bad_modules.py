"""Calls of modules that cannot be answered: text modules, multi-head modules, wrong names."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.support import TEXT, Caller, check_problem
from tests.conftest import TEXT_MODULE

MHA = "/v1/modules/mha/attention"  # nn.MultiheadAttention(16, 4)
KDIM = "/v1/modules/mha-kdim/attention"


def rows(*shape: int, dtype: str = "float32") -> dict[str, Any]:
    size = 1
    for length in shape:
        size *= length
    return {"dtype": dtype, "shape": shape, "data": [0] * size}


# --- Text ------------------------------------------------------------------------------

TEXTS = {
    "missing": ({}, "missing_field", "text", "is missing"),
    "empty_list": ({"text": []}, "invalid_field", "text", "a string or a list of strings"),
    "null": ({"text": None}, "invalid_field", "text", "a string or a list of strings"),
    "number": ({"text": 1}, "invalid_field", "text", "a string or a list of strings"),
    "list_of_lists": ({"text": [["a"]]}, "invalid_field", "text", "list of strings"),
    "list_with_null": ({"text": ["a", None]}, "invalid_field", "text", "list of strings"),
    "pair_of_another_form": (
        {"text": "a", "text_pair": ["b"]}, "invalid_field", "text_pair", "both are lists"
    ),
    "list_and_no_list": (
        {"text": ["a"], "text_pair": "b"}, "invalid_field", "text_pair", "both are lists"
    ),
    "fewer_pairs": (
        {"text": ["a", "b"], "text_pair": ["c"]}, "invalid_field", "text_pair",
        "1 texts where text holds 2",
    ),
    "more_pairs": (
        {"text": ["a"], "text_pair": ["c", "d"]}, "invalid_field", "text_pair",
        "2 texts where text holds 1",
    ),
    "no_pairs": ({"text": ["a"], "text_pair": []}, "invalid_field", "text_pair", "no text"),
    "layer_past_the_last": ({"text": "a", "layers": [0, 6]}, "invalid_field", "layers",
        f"there is no layer 6: {TEXT_MODULE} has 6, 0 to 5"),
    "head_past_the_last": ({"text": "a", "heads": [12]}, "invalid_field", "heads",
        f"there is no head 12: {TEXT_MODULE} has 12, 0 to 11"),
    "head_past_64_bits": ({"text": "a", "heads": [10**19]}, "invalid_field", "heads",
        f"there is no head {10**19}"),
    "negative_layer": ({"text": "a", "layers": [-1]}, "invalid_field", "layers", "from 0 up"),
    "layer_twice": ({"text": "a", "layers": [1, 1]}, "invalid_field", "layers", "once"),
    "no_heads": ({"text": "a", "heads": []}, "invalid_field", "heads", "at least one"),
    "a_layer_alone": ({"text": "a", "layers": 1}, "invalid_field", "layers", '"all"'),
    "layers_in_words": ({"text": "a", "layers": "some"}, "invalid_field", "layers", '"all"'),
    "layer_of_float": ({"text": "a", "layers": [1.0]}, "invalid_field", "layers", "integers"),
    "head_of_bool": ({"text": "a", "heads": [True]}, "invalid_field", "heads", "integers"),
    "truncate_in_words": ({"text": "a", "truncate": "yes"}, "invalid_field", "truncate", "true or"),
    "module_of_number": ({"text": "a", "module": 1}, "invalid_field", "module", "string"),
    "module_that_takes_tensors": (
        {"text": "a", "module": "mha"}, "module_kind", "module", "name a text module"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "code", "field", "says"), TEXTS.values(), ids=TEXTS)
def test_text_that_cannot_be_answered_is_a_422(
    caller: Caller, fields: dict[str, Any], code: str, field: str, says: str
) -> None:
    check_problem(caller.post(TEXT, fields), 422, code, field, says=(says,))


@pytest.mark.parametrize("name", ["no-such", "", "../all-MiniLM-L6-v2"])
def test_an_unknown_module_is_a_404_that_says_which_there_are(caller: Caller, name: str) -> None:
    answer = caller.post(TEXT, {"text": "a", "module": name})
    check_problem(answer, 404, "unknown_module", "module", says=(TEXT_MODULE, "mha"))


@pytest.mark.parametrize("name", ["all-MiniLM-L6", "ALL-MINILM-L6-V2"])
def test_an_unknown_module_s_neighbour_is_told(caller: Caller, name: str) -> None:
    answer = caller.post(TEXT, {"text": "a", "module": name})
    says = (f"Did you mean {TEXT_MODULE!r}?",)
    check_problem(answer, 404, "unknown_module", "module", says=says)


# 510 words of one token each, between [CLS] and [SEP], are what the module takes.
@pytest.mark.parametrize(
    ("fields", "field", "length"),
    [
        ({"text": "cat " * 511}, "text", 513),
        ({"text": "cat " * 10_000}, "text", 10_002),
        ({"text": ["cat", "cat " * 511]}, "text.1", 513),
        ({"text": "cat " * 300, "text_pair": "cat " * 210}, "text", 513),
        ({"text": ["cat", "cat"], "text_pair": ["cat", "cat " * 600]}, "text.1", 604),
    ],
    ids=["one_token", "many", "in_a_list", "as_a_pair", "pair_in_a_list"],
)
def test_a_text_too_long_is_a_422_with_both_numbers(
    caller: Caller, fields: dict[str, Any], field: str, length: int
) -> None:
    says = (f"{length} tokens", "takes 512", "set truncate")
    check_problem(caller.post(TEXT, fields), 422, "text_too_long", field, says=says)


def test_a_text_of_megabytes_is_refused_unread(caller: Caller) -> None:
    answer = caller.post(TEXT, {"text": "ab" * 2_000_000, "truncate": True})
    check_problem(answer, 422, "text_too_long", "text", says=("4000000 characters", "512 tokens"))


@pytest.mark.parametrize(
    ("fields", "length"),
    [({"text": "cat " * 510}, 512), ({"text": "cat " * 600, "truncate": True}, 512)],
    ids=["longest", "cut"],
)
def test_a_text_as_long_as_may_be_is_served(
    caller: Caller, fields: dict[str, Any], length: int
) -> None:
    answer = caller.post(TEXT, {**fields, "return": {"weights": False, "output": False}})
    assert answer.status_code == 200, answer.text
    tokens = answer.json()["results"][0]["tokens"]
    assert tokens == ["[CLS]", *["cat"] * (length - 2), "[SEP]"]


@pytest.mark.parametrize("text", ["", " ", "\n\t", "\u200b", "\x07"])
def test_a_text_without_words_is_its_special_tokens(caller: Caller, text: str) -> None:
    answer = caller.post(TEXT, {"text": text})
    assert answer.status_code == 200, answer.text
    (result,) = answer.json()["results"]
    assert result["tokens"] == ["[CLS]", "[SEP]"]
    assert result["offsets"] == [[0, 0], [0, 0]]
    assert result["special_tokens_mask"] == [1, 1]


# --- Multi-head modules ----------------------------------------------------------------

TENSORS = {
    "missing": (MHA, {}, "missing_field", "query", ("is missing",)),
    "rank_2": (MHA, {"query": rows(2, 16)}, "invalid_tensor", "query",
        ("[2, 16]", "[B, length, 16]")),
    "rank_4": (MHA, {"query": rows(1, 1, 2, 16)}, "invalid_tensor", "query", ("[B, length, 16]",)),
    "width": (MHA, {"query": rows(1, 2, 15)}, "invalid_tensor", "query", ("[1, 2, 15]", "16]")),
    "key_width": (MHA, {"query": rows(1, 2, 16), "key": rows(1, 2, 5)}, "invalid_tensor", "key",
                  ("[1, 2, 5]", "[B, length, 16]")),
    "key_by_default": (KDIM, {"query": rows(1, 2, 16)}, "invalid_tensor", "key", ("by default",)),
    "batch": (MHA, {"query": rows(2, 2, 16), "key": rows(1, 2, 16)}, "invalid_tensor", "key",
              ("[2, 2, 16]", "[1, 2, 16]", "batch")),
    "lengths": (MHA, {"query": rows(1, 2, 16), "key": rows(1, 3, 16), "value": rows(1, 4, 16)},
                "invalid_tensor", "value", ("[1, 3, 16]", "[1, 4, 16]", "one length")),
    "float64": (MHA, {"query": rows(1, 2, 16, dtype="float64")}, "invalid_tensor", "query",
                ("float64", "send float32")),
    "ints": (MHA, {"query": rows(1, 2, 16, dtype="int64")}, "invalid_tensor", "query", ("int64",)),
    "two_dtypes": (MHA, {"query": rows(1, 2, 16), "key": rows(1, 2, 16, dtype="float16")},
                   "invalid_tensor", "key", ("float16", "float32", "one dtype")),
    "nan": (MHA, {"query": [[["NaN"] + [0] * 15]]}, "non_finite", "query", ("finite numbers",)),
    "nan_in_key": (MHA, {"query": rows(1, 1, 16), "key": [[["NaN"] + [0] * 15]]}, "non_finite",
                   "key", ("[0,0,0] of its shape [1, 1, 16]", "mask that row")),
    "int_mask": (MHA, {"query": rows(1, 2, 16), "attn_mask": [[1, 0], [1, 1]]}, "invalid_tensor",
                 "attn_mask", ("true and false",)),
    "mask_shape": (MHA, {"query": rows(1, 2, 16), "attn_mask": [[True] * 3]}, "invalid_tensor",
                   "attn_mask", ("[1, 3]", "[1, 4, 2, 2]")),
    "nan_in_mask": (MHA, {"query": rows(1, 2, 16), "attn_mask": [["NaN", 0]]}, "non_finite",
                    "attn_mask", ("-Infinity",)),
    "overflow": (MHA, {"query": [[[3e38] * 16]]}, "overflow", "query", ("smaller numbers",)),
}  # fmt: skip


@pytest.mark.parametrize(("path", "fields", "code", "field", "says"), TENSORS.values(), ids=TENSORS)
def test_tensors_that_a_module_cannot_take_are_a_422(
    caller: Caller, path: str, fields: dict[str, Any], code: str, field: str, says: tuple[str, ...]
) -> None:
    check_problem(caller.post(path, fields), 422, code, field, says=says)


@pytest.mark.parametrize("name", ["no-such", "%00", "%F0%9F%90%88", "%FF", "mha%20", "..%5cmha"])
def test_tensors_to_an_unknown_module_are_a_404(caller: Caller, name: str) -> None:
    answer = caller.post(f"/v1/modules/{name}/attention", {"query": rows(1, 1, 16)})
    check_problem(answer, 404, "unknown_module", says=(TEXT_MODULE, "mha"))


def test_tensors_to_a_text_module_are_a_422(caller: Caller) -> None:
    answer = caller.post(f"/v1/modules/{TEXT_MODULE}/attention", {"query": rows(1, 1, 384)})
    check_problem(answer, 422, "module_kind", says=(TEXT_MODULE, TEXT))


def test_without_modules_a_text_call_says_how_to_add_one(small: Caller) -> None:
    answer = small.post(TEXT, {"text": "a"})
    says = ("attention-service export", "/nonexistent")
    check_problem(answer, 404, "unknown_module", says=says)
    answer = small.post(TEXT, {"text": "a", "module": "b"})
    check_problem(answer, 404, "unknown_module", "module", says=("'b'", "none"))
