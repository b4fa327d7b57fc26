"""Bodies: the same fields in both wire forms, and the forms in each other's place."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attention_wire import bodies, safetensors
from attention_wire.bodies import JSON, SAFETENSORS
from attention_wire.problems import Code, ProblemError
from tests.wire.strategies import arrays, repeatable, same

plain = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=4)
names = st.text(alphabet="abc_é", min_size=1, max_size=3)
fields = st.dictionaries(
    names,
    plain
    | arrays()
    | st.dictionaries(names, plain | arrays(), max_size=2)
    | st.lists(st.dictionaries(names, plain | arrays(), max_size=2), min_size=1, max_size=2),
    max_size=4,
)


def equal(left: Any, right: Any) -> bool:
    if isinstance(left, np.ndarray):
        return isinstance(right, np.ndarray) and same(left, right)
    if isinstance(left, dict):
        return set(left) == set(right) and all(equal(left[name], right[name]) for name in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)


@repeatable
@given(fields)
def test_safetensors_keeps_all_fields(values: dict[str, Any]) -> None:
    body = bodies.write(SAFETENSORS, values, "response")
    assert body.media_type == SAFETENSORS
    assert equal(bodies.read(SAFETENSORS, bytes(body), "response").values, values)


@repeatable
@given(fields)
def test_json_keeps_what_is_no_tensor_and_hides_none(values: dict[str, Any]) -> None:
    def without_tensors(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return "a tensor"
        if isinstance(value, dict):
            return {name: without_tensors(item) for name, item in value.items()}
        return [without_tensors(item) for item in value] if isinstance(value, list) else value

    text = bytes(bodies.write(JSON, values, "response", "base64"))

    def tensors_as_words(pairs: list[tuple[str, Any]]) -> Any:
        is_tensor = {name for name, _ in pairs} == {"dtype", "shape", "data"}
        return "a tensor" if is_tensor else dict(pairs)

    assert json.loads(text, object_pairs_hook=tensors_as_words) == without_tensors(values)


def test_nested_results_go_by_dotted_names() -> None:
    results = [{"tokens": ["a"], "weights": np.ones(1, np.float32)}, {"weights": np.zeros(2)}]
    raw = bytes(bodies.write(SAFETENSORS, {"module": "m", "results": results}, "response"))
    tensors, metadata = safetensors.read(raw)
    assert set(tensors) == {"results.0.weights", "results.1.weights"}
    expected = {"module": "m", "results": [{"tokens": ["a"]}, {}]}
    assert json.loads(metadata["response"]) == expected


def test_a_body_is_buffers_that_share_the_tensors_memory() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    body = bodies.write(SAFETENSORS, {"query": array}, "request")
    assert np.shares_memory(np.frombuffer(body.buffers[1], np.float32), array)


def safetensors_of(tensors: dict[str, Any], request: object) -> bytes:
    text = request if isinstance(request, str) else json.dumps(request)
    return b"".join(safetensors.write(tensors, {"request": text}))


ONE = np.ones(1, np.float32)


@pytest.mark.parametrize(
    ("tensors", "request_", "name"),
    [
        ({"query": ONE}, {"query": [1]}, "query"),
        ({"return.weights": ONE}, {"return": {"weights": True}}, "return.weights"),
        ({"return.weights": ONE}, {"return": True}, "return.weights"),
        ({"text.0": ONE}, {"text": ["a"]}, "text.0"),
        ({"text.1.a": ONE}, {"text": ["a"]}, "text.1.a"),
        ({f"text.{'9' * 5000}.a": ONE}, {"text": ["a"]}, f"text.{'9' * 5000}.a"),
        ({"text.²": ONE}, {"text": ["a"]}, "text.²"),
        ({"a": ONE, "a.b": ONE}, {}, "a.b"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_field_in_two_places_is_refused(
    tensors: dict[str, Any], request_: object, name: str
) -> None:
    with pytest.raises(ProblemError) as caught:
        bodies.read(SAFETENSORS, safetensors_of(tensors, request_), "request")
    assert caught.value.code == Code.DUPLICATE_FIELD
    assert [error.loc for error in caught.value.errors] == [(name,)]


@pytest.mark.parametrize(
    ("media_type", "raw", "code"),
    [
        (JSON, b"[1]", Code.INVALID_FIELD),
        (JSON, b"null", Code.INVALID_FIELD),
        (JSON, b'"query"', Code.INVALID_FIELD),
        (JSON, b"", Code.MALFORMED_JSON),
        (SAFETENSORS, b"{}", Code.MALFORMED_TENSOR),
        (SAFETENSORS, safetensors_of({}, "[]"), Code.INVALID_FIELD),
        (SAFETENSORS, safetensors_of({}, "{"), Code.MALFORMED_JSON),
        (SAFETENSORS, safetensors_of({}, '{"a": 1, "a": 1}'), Code.DUPLICATE_FIELD),
        (SAFETENSORS, safetensors_of({}, "[" * 65 + "]" * 65), Code.TOO_DEEP),
    ],
)
def test_a_body_is_an_object_of_fields(media_type: str, raw: bytes, code: Code) -> None:
    with pytest.raises(ProblemError) as caught:
        bodies.read(media_type, raw, "request")
    assert caught.value.code == code


def test_a_safetensors_body_without_metadata_has_tensors_only() -> None:
    raw = b"".join(safetensors.write({"query": ONE}, {"other": "{}"}))
    assert list(bodies.read(SAFETENSORS, raw, "request").values) == ["query"]


def test_only_numbers_is_told_of_both_forms() -> None:
    assert bodies.read(JSON, b'{"a": [1]}', "request").only_numbers
    assert not bodies.read(JSON, b'{"a": ["NaN"]}', "request").only_numbers
    assert bodies.read(SAFETENSORS, safetensors_of({}, {"a": [1]}), "request").only_numbers
    assert not bodies.read(SAFETENSORS, safetensors_of({}, {"a": [True]}), "request").only_numbers


@pytest.mark.parametrize("beside", [0, np.nan, np.inf])
def test_float32_is_written_with_its_own_few_digits(beside: float) -> None:
    array = np.array([0.1, -3.4028235e15, -1.1754944e-38, beside], np.float32)
    text = bytes(bodies.write(JSON, {"a": array}, "response")).decode()
    assert [len(word) for word in text[6:].split(",")[:3]] == [3, 14, 14]
    scalar = bytes(bodies.write(JSON, {"a": np.array(array[0])}, "response"))
    assert scalar == b'{"a":0.1}'
