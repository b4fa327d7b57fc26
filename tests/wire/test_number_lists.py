"""Lists of numbers come straight into arrays, and everything else as orjson gives it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from attention_wire import documents, number_lists
from attention_wire.problems import ProblemError
from tests.wire.strategies import repeatable

NAMES = frozenset({"query", "key"})


def parse(text: bytes, names: frozenset[str] = NAMES) -> Any:
    return documents.parse(text, tensors=names).value


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 3), (1, 2, 3, 4), (4, 1, 1)])
def test_lists_of_numbers_become_arrays(shape: tuple[int, ...]) -> None:
    numbers = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    found = parse(json.dumps({"query": numbers.tolist(), "other": numbers.tolist()}).encode())
    assert found["query"].dtype == np.float32
    assert found["query"].shape == shape
    assert (found["query"] == numbers).all()
    assert found["other"] == numbers.tolist()


def test_integers_and_large_numbers_are_those_of_numpy() -> None:
    numbers = [0, -0.0, 1, 2**53 + 1, -(2**63), 2**64 - 1, 1e-46, 1e39, -1e308, 0.1]
    found = parse(json.dumps({"query": numbers}).encode())["query"]
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(found, np.array(numbers, np.float32))


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "[[], []]",
        "[[1, 2], [3]]",
        "[1, [2]]",
        "[[1], 2]",
        "[[1, [2]], [3, 4]]",
        "[[1, 2, []], [[3], 4, 5]]",
        "[[[1], 2], [3, 4]]",
        "[true, false]",
        '[1, "NaN"]',
        "[1, null]",
        "[1, {}]",
        "[36893488147419103232]",
        '{"dtype": "float32", "shape": [1], "data": [1]}',
        '"a"',
        "7",
        "null",
    ],
)
def test_what_is_no_such_list_comes_as_ever(text: str) -> None:
    found = parse(f'{{"query": {text}, "key": [1]}}'.encode())
    assert not isinstance(found["query"], np.ndarray | np.generic)
    assert found["query"] == orjson.loads(text)


@pytest.mark.parametrize(
    "text",
    [
        b'{"query": [1], "query": [2]}',
        b'{"a": {"b": 1, "b": 2}, "query": [1]}',
        b'\xef\xbb\xbf{"query": [1]}',
        b'{"query": [1]} x',
        b'{"query": [1,]}',
        b'{"query": [01]}',
        b'{"query": [1e]}',
        b'{"query": [NaN]}',
        b'{"query": "\xff"}',
        b'{"query": "\\ud800"}',
        b'{"query": ' + b"[" * 70 + b"1" + b"]" * 70 + b"}",
        b"",
    ],
)
def test_what_is_refused_is_refused_in_the_same_words(text: bytes) -> None:
    with pytest.raises(ProblemError) as ever:
        documents.parse(text)
    with pytest.raises(ProblemError) as found:
        parse(text)
    assert str(found.value) == str(ever.value)
    assert found.value.code == ever.value.code


def test_many_members_are_left_to_the_other_parser() -> None:
    text = json.dumps({**{str(number): 1 for number in range(10**5)}, "query": [1]}).encode()
    assert number_lists.parse(text, NAMES) is None
    assert len(parse(text)) == 10**5 + 1


_numbers = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
_nested = st.recursive(
    _numbers | st.booleans() | st.none() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)


@repeatable
@given(_nested, _nested, st.text(max_size=3).filter(lambda name: name not in NAMES))
@example([[1.5]], [2.0], "query\0")  # names are looked for up to a NUL
@example([[1.5]], [2.0], "\0")
def test_both_parsers_give_the_same(query: Any, other: Any, name: str) -> None:
    text = json.dumps({"query": query, name: other}).encode()
    ever, found = documents.parse(text), documents.parse(text, tensors=NAMES)
    assert found.only_numbers == ever.only_numbers
    assert list(found.value) == list(ever.value)
    assert found.value[name] == ever.value[name]
    if isinstance(found.value["query"], np.ndarray):
        with np.errstate(over="ignore"):
            expected = np.array(ever.value["query"], np.float32)
        np.testing.assert_array_equal(found.value["query"], expected)
        assert found.value["query"].shape == expected.shape
    else:
        assert found.value["query"] == ever.value["query"]
