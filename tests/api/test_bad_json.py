"""Bodies that are no JSON object of known fields."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.api.support import (
    ATTENTION,
    GOOD,
    SAFETENSORS,
    TEXT,
    Caller,
    body_of,
    check_problem,
)

GOOD_TEXT = json.dumps(GOOD)[1:-1]


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        (b"", "malformed_json", "The body is empty: send a JSON object."),
        (b"   \n", "malformed_json", "empty: send a JSON object"),
        (b"{", "malformed_json", "not valid JSON"),
        (b"query=1&key=2", "malformed_json", "not valid JSON"),
        (b"{'query': [[1]]}", "malformed_json", "not valid JSON"),
        (f"{{{GOOD_TEXT}}} {{}}".encode(), "malformed_json", "not valid JSON"),
        (f"{{{GOOD_TEXT},}}".encode(), "malformed_json", "not valid JSON"),
        (f"{{{GOOD_TEXT}}}".encode("utf-16"), "malformed_json", "is not UTF-8"),
        (f"\ufeff{{{GOOD_TEXT}}}".encode(), "malformed_json", "not valid JSON"),
        (b'{"text": "\xff"}', "malformed_json", "is not UTF-8, as JSON has to be: byte 0xff at 10"),
        (b'{"query": [[NaN, 0]]}', "malformed_json", 'the strings "NaN"'),
        (b'{"query": [[Infinity, 0]]}', "malformed_json", '"Infinity"'),
        (b'{"scale": 1e999}', "malformed_json", "not valid JSON"),
        (b'{"text": "a\x00b"}', "malformed_json", "not valid JSON"),
        (b"[" * 65, "too_deep", "deeper than 64"),
        (b"[" * 200_000, "too_deep", "deeper than 64"),
        (b'{"query":' * 65, "too_deep", "deeper than 64"),
        (b'{"query": ' + b"[" * 64 + b"1" + b"]" * 64 + b"}", "too_deep", "one level for each"),
    ],
    ids=lambda value: repr(value)[:28] if isinstance(value, bytes) else None,
)
def test_what_cannot_be_parsed_is_a_400(caller: Caller, body: bytes, code: str, says: str) -> None:
    check_problem(caller.post(ATTENTION, body), 400, code, says=(says,))


def test_64_levels_are_read(caller: Caller) -> None:
    body = b'{"query": ' + b"[" * 63 + b"1" + b"]" * 63 + b', "key": [[1]], "value": [[1]]}'
    check_problem(caller.post(ATTENTION, body), 422, "invalid_tensor", "query", says=("rank 63",))


@pytest.mark.parametrize("body", [b"[]", b"null", b"1", b'"text"', b"true", b"[{}]"])
def test_what_is_no_object_of_fields_is_a_422(caller: Caller, body: bytes) -> None:
    answer = caller.post(ATTENTION, body)
    check_problem(answer, 422, "invalid_field", says=("must be a JSON object of fields",))


@pytest.mark.parametrize(
    ("more", "fields"),
    [
        ('"query": [[9, 9]]', ["query"]),
        ('"scale": 1, "scale": 1', ["scale"]),
        ('"scale": 1, "\\u0073cale": 2', ["scale"]),
        ('"return": {"output": true, "output": false}', ["return.output"]),
        ('"return": {"weights": {"heads": [0], "heads": [0]}}', ["return.weights.heads"]),
        ('"return": {}, "return": {}, "key": 1', ["key", "return"]),
    ],
)
def test_a_field_given_twice_is_a_400(caller: Caller, more: str, fields: list[str]) -> None:
    answer = caller.post(ATTENTION, f"{{{GOOD_TEXT}, {more}}}".encode())
    check_problem(answer, 400, "duplicate_field", *fields, says=("Send each field once",))


def test_a_field_given_twice_in_a_tensor_object_is_a_400(caller: Caller) -> None:
    tensor = '{"dtype": "float32", "shape": [1, 1], "data": [[1]], "shape": [1, 1]}'
    answer = caller.post(ATTENTION, f'{{"query": {tensor}}}'.encode())
    check_problem(answer, 400, "duplicate_field", "query.shape")


@pytest.mark.parametrize(
    ("path", "more", "field", "says"),
    [
        (ATTENTION, {"sclae": 1}, "sclae", "did you mean 'scale'?"),
        (ATTENTION, {"attention_mask": [[True]]}, "attention_mask", "did you mean 'attn_mask'?"),
        (ATTENTION, {"Query": [[1]]}, "Query", "did you mean 'query'?"),
        (ATTENTION, {"return_": {}}, "return_", "did you mean 'return'?"),
        (ATTENTION, {"": 1}, "", "known are "),
        (ATTENTION, {"zzzz": 1}, "zzzz", "is_causal, key"),
        (ATTENTION, {"scale\0": 1}, "scale\0", "did you mean 'scale'?"),
        (ATTENTION, {"return": {"weight": True}}, "return.weight", "did you mean 'weights'?"),
        (ATTENTION, {"return": {"weights": {"head": [0]}}}, "return.weights.head", "'heads'"),
        (TEXT, {"txt": "a"}, "txt", "did you mean 'text'?"),
        (TEXT, {"is_causal": True}, "is_causal", "is a field of POST /v1/attention"),
        (TEXT, {"value": [[1]]}, "value", "is a field of POST /v1/attention"),
        ("/v1/modules/mha/attention", {"q_num_heads": 1}, "q_num_heads", "of POST /v1/attention"),
    ],
)
def test_an_unknown_field_is_a_422_with_the_nearest_name(
    caller: Caller, path: str, more: dict[str, Any], field: str, says: str
) -> None:
    good = {"text": "a"} if path == TEXT else {"query": [[[0] * 8]]} if "mha" in path else GOOD
    answer = caller.post(path, {**good, **more})
    problem = check_problem(answer, 422, "unknown_field", field, says=(says,))
    assert "unknown field" in problem["detail"]


def test_many_unknown_fields_are_not_all_told_back(caller: Caller) -> None:
    answer = caller.post(ATTENTION, {**GOOD, **{"x" * 5000 + str(i): 1 for i in range(1000)}})
    assert answer.status_code == 422
    assert answer.json()["code"] == "unknown_field"
    assert "999 more" in answer.json()["detail"]
    assert len(answer.content) < 20_000


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"text": "\\ud800"}', "text"),
        (b'{"text": "a\\udfff b"}', "text"),
        (b'{"text": "in UTF-8 \xed\xa0\x80"}', "text"),
        (b'{"text": ["good", "\\ud83d"]}', "text.1"),
        (b'{"text": "good", "text_pair": "\\ude00\\ud83d"}', "text_pair"),
        (b'{"text": "good", "module": "\\udc00"}', "module"),
        (b'{"text": "good", "\\udc00": 1}', "\\udc00"),
    ],
)
def test_a_lone_surrogate_is_a_422(caller: Caller, body: bytes, field: str) -> None:
    answer = caller.post(TEXT, body)
    check_problem(answer, 422, "invalid_field", field, says=("lone surrogate", "whole pair"))


def test_a_lone_surrogate_inside_safetensors_is_a_422(caller: Caller) -> None:
    body = body_of({"__metadata__": {"request": '{"text": "\\ud800"}'}})
    answer = caller.post(TEXT, body, Content_Type=SAFETENSORS)
    check_problem(answer, 422, "invalid_field", "text", says=("lone surrogate",))


def test_hostile_json_is_refused_in_little_time(caller: Caller) -> None:
    """Each is a megabyte that a parser could go over again from each of its characters."""
    bodies = [
        b'{"text": "' + b'\\"' * 500_000,
        b'{"a": ' * 100_000,
        b'["' * 500_000,
        b"{" + b",".join(b'"%d": 1' % i for i in range(80_000)) + b"}",
        b'{"query": [' + b"[]," * 300_000 + b"[1]]}",
        b'{"query": [' + b"1," * 500_000 + b"true]}",
        b'{"scale": ' + b"9" * 1_000_000 + b"}",
    ]
    begin = time.monotonic()
    for body in bodies:
        assert caller.post(ATTENTION, body).status_code in (400, 422), body[:20]
    assert time.monotonic() - begin < 10
