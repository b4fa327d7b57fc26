"""safetensors bodies that lie about what they hold."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.api.support import (
    ATTENTION,
    GOOD,
    GOOD_WEIGHTS,
    SAFETENSORS,
    TEXT,
    Caller,
    body_of,
    check_problem,
)

DATA = b"".join(np.array(GOOD[name], "<f4").tobytes() for name in ("query", "key", "value"))


def entry(begin: int, end: int, dtype: str = "F32", shape: object = (2, 2)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


GOOD_HEADER = {"query": entry(0, 16), "key": entry(16, 32), "value": entry(32, 48)}


def ask(caller: Caller, body: bytes, path: str = ATTENTION) -> Any:
    return caller.post(path, body, Content_Type=SAFETENSORS)


@pytest.mark.parametrize("pad", [0, 1, 3])
def test_what_the_cases_below_spoil_is_served_at_any_alignment(caller: Caller, pad: int) -> None:
    answer = ask(caller, body_of(json.dumps(GOOD_HEADER).encode() + b" " * pad, DATA))
    assert answer.status_code == 200, answer.text
    weights = np.frombuffer(answer.content[-16:], "<f4")
    np.testing.assert_allclose(weights, GOOD_WEIGHTS.ravel(), atol=1e-6)


BODIES = {
    "empty": (b"", "0 bytes"),
    "short": (b"\x01\x02", "2 bytes"),
    "length_alone": (bytes(7), "7 bytes"),
    "length_past_the_body": (body_of(b"{}", length=3), "3 bytes"),
    "sent_by_curl_as_text": (body_of(GOOD_HEADER, DATA).replace(b"\0", b""), "--data-binary"),
    "length_of_2**64": (body_of(b"{}", length=2**64 - 1), str(2**64 - 1)),
    "header_past_its_limit": (body_of(b"{}", length=17 * 2**20), "16777216"),
    "header_of_a_list": (body_of([]), "JSON object"),
    "metadata_of_a_list": (body_of({"__metadata__": []}), "__metadata__"),
    "metadata_of_numbers": (body_of({"__metadata__": {"request": 1}}), "strings"),
    "bytes_after": (body_of(GOOD_HEADER, DATA + b"\x00"), "1 bytes follow"),
    "no_tensor_and_data": (body_of({}, DATA), "48 bytes follow"),
}


@pytest.mark.parametrize(("body", "says"), BODIES.values(), ids=BODIES)
def test_a_body_that_is_none_is_a_400(caller: Caller, body: bytes, says: str) -> None:
    check_problem(ask(caller, body), 400, "malformed_tensor", says=("safetensors", says))


HEADERS = {
    "not_json": (b"{'query': 1}", "malformed_json", ()),
    "not_utf8": (b'{"\xff": 1}', "malformed_json", ()),
    "cut": (b'{"query":', "malformed_json", ()),
    "of_nothing": (b"", "malformed_json", ()),
    "deep": (b"[" * 70, "too_deep", ()),
    "twice": (b'{"query": 1, "query": 1}', "duplicate_field", ("query",)),
    "twice_inside": (
        b'{"query": {"dtype": "F32", "dtype": "F16"}}', "duplicate_field", ("query.dtype",)
    ),
}  # fmt: skip


@pytest.mark.parametrize(("header", "code", "fields"), HEADERS.values(), ids=HEADERS)
def test_a_header_that_is_no_json_is_a_400(
    caller: Caller, header: bytes, code: str, fields: tuple[str, ...]
) -> None:
    check_problem(ask(caller, body_of(header)), 400, code, *fields)


ENTRIES = {
    "past_the_data": ({"value": entry(32, 64)}, "value", "past the 48 bytes"),
    "far_past_the_data": ({"value": entry(32, 2**62)}, "value", "past the 48 bytes"),
    "overlap": ({"key": entry(8, 24)}, "key", "no overlaps"),
    "one_place_twice": ({"key": entry(0, 16)}, "key", "begin at 16"),
    "hole": ({"query": ..., "key": entry(16, 32)}, "key", "no holes"),
    "backwards": ({"key": entry(16, 0)}, "key", "begin at"),
    "negative": ({"query": entry(-16, 16)}, "query", "begin at 0"),
    "too_few_bytes": ({"value": entry(32, 44), "x": entry(44, 48, "F32", [1])},
        "value", "takes 16"),
    "too_many_bytes": ({"value": entry(32, 48, "F32", [2, 1])}, "value", "takes 8"),
    "other_size": ({"value": entry(32, 48, "F64")}, "value", "takes 32"),
    "no_offsets": ({"value": {"dtype": "F32", "shape": [2, 2]}}, "value", "data_offsets"),
    "one_offset": ({"value": {**entry(0, 0), "data_offsets": [32]}}, "value", "two data_offsets"),
    "offsets_of_floats": ({"value": {**entry(0, 0), "data_offsets": [32.0, 48.0]}}, "value", "two"),
    "offsets_of_bools": ({"query": {**entry(0, 0), "data_offsets": [False, 16]}}, "query", "two"),
    "a_number": ({"value": 1}, "value", "dtype, shape and two"),
    "null": ({"value": None}, "value", "dtype, shape and two"),
    "other_member": ({"value": {**entry(32, 48), "order": "C"}}, "value", "unknown fields"),
    "shape_of_words": ({"value": {**entry(32, 48), "shape": "22"}},
        "value", "dtype, shape and two"),
    "bool_bytes": ({"value": ..., "attn_mask": entry(32, 48, "BOOL", [16])}, "attn_mask", "0 or 1"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "field", "says"), ENTRIES.values(), ids=ENTRIES)
def test_an_entry_that_lies_is_a_400(
    caller: Caller, change: dict[str, Any], field: str, says: str
) -> None:
    header = {name: at for name, at in {**GOOD_HEADER, **change}.items() if at is not ...}
    answer = ask(caller, body_of(header, DATA))
    check_problem(answer, 400, "malformed_tensor", field, says=(f"{field}: ", says))


NO_TENSORS = {
    "unknown_dtype": (entry(32, 48, "F8_E4M3"), "known are F16, BF16, F32, F64, BOOL, I32, I64"),
    "our_name_for_a_dtype": (entry(32, 48, "float32"), "known are F16"),
    "negative_shape": (entry(32, 48, "F32", [-2, -2]), "0 or more"),
    "huge_shape": (entry(32, 48, "F32", [2**62, 2**62]), "too large"),
    "huge_and_empty": (entry(32, 32, "F32", [0, 2**62]), "too large"),
    "17_dimensions": (entry(32, 48, "F32", [1] * 17), "at most 16"),
    "shape_of_floats": (entry(32, 48, "F32", [2.0, 2]), "0 or more"),
}


@pytest.mark.parametrize(("value", "says"), NO_TENSORS.values(), ids=NO_TENSORS)
def test_a_dtype_or_shape_that_is_none_is_a_422(
    caller: Caller, value: dict[str, Any], says: str
) -> None:
    answer = ask(caller, body_of({**GOOD_HEADER, "value": value}, DATA))
    check_problem(answer, 422, "invalid_tensor", "value", says=(says,))


def with_request(request: str, **more: dict[str, Any]) -> bytes:
    return body_of({**GOOD_HEADER, **more, "__metadata__": {"request": request}}, DATA)


def test_a_field_among_the_tensors_and_in_the_metadata_is_a_400(caller: Caller) -> None:
    answer = ask(caller, with_request('{"value": [[1, 2], [3, 4]]}'))
    check_problem(answer, 400, "duplicate_field", "value", says=("one place",))


@pytest.mark.parametrize(
    ("body", "status", "code", "fields"),
    [
        (with_request("{"), 400, "malformed_json", []),
        (with_request(""), 400, "malformed_json", []),
        (with_request("[]"), 422, "invalid_field", []),
        (with_request('{"scale": 1, "scale": 2}'), 400, "duplicate_field", ["scale"]),
        (with_request("[" * 65), 400, "too_deep", []),
        (with_request('{"sclae": 1}'), 422, "unknown_field", ["sclae"]),
        (with_request('{"scale": "2"}'), 422, "invalid_field", ["scale"]),
        (with_request('{"return": 1}', **{"return.x": entry(48, 48, "F32", [0])}), 400,
         "duplicate_field", ["return.x"]),
        (with_request("{}", **{"a.b.c": entry(48, 48, "F32", [0])}), 422, "unknown_field", ["a"]),
        (with_request("{}", scale=entry(48, 48, "F32", [0])), 422, "invalid_field", ["scale"]),
        (with_request("{}", attn_mask=entry(48, 48, "I64", [0])), 422, "invalid_tensor",
         ["attn_mask"]),
    ],
)  # fmt: skip
def test_fields_beside_the_tensors_are_checked_as_in_json(
    caller: Caller, body: bytes, status: int, code: str, fields: list[str]
) -> None:
    check_problem(ask(caller, body), status, code, *fields)


@pytest.mark.parametrize("content_type", ["application/json", "application/x-www-form-urlencoded"])
def test_safetensors_by_another_name_is_told_its_own(caller: Caller, content_type: str) -> None:
    answer = caller.post(ATTENTION, body_of(GOOD_HEADER, DATA), Content_Type=content_type)
    says = (f"looks like safetensors: send it with Content-Type: {SAFETENSORS}",)
    check_problem(answer, 400, "malformed_json", says=says)


def test_a_field_in_the_metadata_itself_is_refused(caller: Caller) -> None:
    metadata = {"is_causal": "true", "scale": "2", "format": "pt", "request": '{"scale": 1}'}
    answer = ask(caller, body_of({**GOOD_HEADER, "__metadata__": metadata}, DATA))
    fields = "__metadata__.is_causal", "__metadata__.scale"
    check_problem(answer, 422, "unknown_field", *fields, says=("under its key 'request'", "1 more"))
    answer = ask(caller, body_of({"__metadata__": {"request": '{"text": "hi"}', "unit": "word"}}),
                 TEXT)  # fmt: skip
    check_problem(answer, 422, "unknown_field", "__metadata__.unit")


def test_other_metadata_is_nobody_s(caller: Caller) -> None:
    header = {**GOOD_HEADER, "__metadata__": {"format": "pt", "text": "of another route"}}
    assert ask(caller, body_of(header, DATA)).status_code == 200


def test_a_name_of_many_parts_is_refused(caller: Caller) -> None:
    header = {"a." * 10_000 + "b": entry(0, 0, "F32", [0])}
    answer = ask(caller, body_of(header))
    assert answer.status_code == 422
    assert len(answer.content) < 5_000
