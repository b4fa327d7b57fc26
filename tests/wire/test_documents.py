"""Strict JSON: what a lenient parser lets pass is refused, and nothing else is."""

from __future__ import annotations

import json
from typing import Any, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attention_wire import documents
from attention_wire.problems import Code, ProblemError
from tests.wire.strategies import repeatable

# Names and strings full of what the count of names and brackets must not be misled by.
words = st.text(alphabet='a:"\\{}[],true0é\u2028\n', max_size=6)
scalars = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-2, 2) | words
# An object is a list of pairs, so that a name can come twice in it.
Pairs: TypeAlias = list[tuple[str, Any]]


class Object(list):  # type: ignore[type-arg]
    """The pairs of an object, told apart from a list of pairs."""


values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(st.tuples(words, inner), max_size=4).map(Object)
        | st.lists(st.tuples(st.sampled_from("ab"), inner), max_size=3).map(Object)
    ),
    max_leaves=16,
)


def text_of(value: Any) -> str:
    if isinstance(value, Object):
        return "{" + ", ".join(f"{json.dumps(k)} : {text_of(v)}" for k, v in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(text_of, value)) + "]"
    return json.dumps(value, ensure_ascii=isinstance(value, str) and len(value) % 2 == 0)


def repeated_names(value: Any) -> set[str]:
    if isinstance(value, Object):
        names = [name for name, _ in value]
        inner = [repeated_names(item) for _, item in value]
        return {name for name in names if names.count(name) > 1}.union(*inner)
    if isinstance(value, list):
        return set().union(*map(repeated_names, value))
    return set()


def lists_hold_only_numbers(value: Any, *, in_list: bool = False) -> bool:
    if isinstance(value, Object):
        return all(lists_hold_only_numbers(item) for _, item in value)
    if isinstance(value, list):
        return all(lists_hold_only_numbers(item, in_list=True) for item in value)
    return not in_list or (isinstance(value, int | float) and not isinstance(value, bool))


def refusal(text: str | bytes) -> ProblemError:
    with pytest.raises(ProblemError) as caught:
        documents.parse(text.encode() if isinstance(text, str) else text)
    return caught.value


@repeatable
@given(values)
def test_a_document_is_what_json_reads_or_names_what_came_twice(value: Any) -> None:
    text = text_of(value)
    if repeated := repeated_names(value):
        problem = refusal(text)
        assert problem.code == Code.DUPLICATE_FIELD
        assert {error.loc[-1] for error in problem.errors} <= repeated
        assert problem.errors
    else:
        assert documents.parse(text.encode()).value == json.loads(text)


@repeatable
@given(values)
def test_lists_that_are_said_to_hold_only_numbers_do(value: Any) -> None:
    if repeated_names(value):
        return
    document = documents.parse(text_of(value).encode())
    if document.only_numbers:
        has_object_first = any(_object_lists(value))
        assert lists_hold_only_numbers(value) or has_object_first


def _object_lists(value: Any) -> list[bool]:
    """Lists that begin with an object: no tensor, and refused wherever one is looked for."""
    items = [item for _, item in value] if isinstance(value, Object) else value
    if not isinstance(items, list):
        return []
    here = not isinstance(value, Object) and bool(items) and isinstance(items[0], Object)
    return [here] * here + [found for item in items for found in _object_lists(item)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"query": [[1, -2.5e3]], "n": null, "text": "true: [{"}', True),
        ('{"a": [1, "NaN"]}', False),
        ('{"a": [true]}', False),
        ('{"a": [[null]]}', False),
        ('{"a": {"b": [1], "c": false}}', True),
        ('{"a": {"b": ["x"], "c": [1]}}', False),
        ('"text"', True),
        ("[]", True),
    ],
)
def test_only_numbers(text: str, expected: bool) -> None:
    assert documents.parse(text.encode()).only_numbers is expected


@pytest.mark.parametrize(
    ("text", "locs"),
    [
        ('{"a": 1, "a": 1}', [("a",)]),
        ('{"a": 1, "a": 2, "a": 3, "b": 1, "c": 1, "b": 2}', [("a",), ("b",)]),
        ('{"x": {"y": {"a": 1, "a": 2}}}', [("x", "y", "a")]),
        ('{"x": [{"y": [{"a": 1, "a": 2}]}]}', [("x", 0, "y", 0, "a")]),
        ('{"x": [[{"a": 1, "a": 2}]]}', [("x", 0, 0, "a")]),
        ('{"x": [1, {"a": 1, "a": 2}]}', [("x", 1, "a")]),
        ('{"x": {"a": 1, "a": 1}, "x": {"a": 1, "a": 1}}', [("x",), ("x", "a")]),
        ('[{"a": 1}, {"a": 1, "a": 1}]', [(1, "a")]),
        ('{"a": 1, "\\u0061": 2}', [("a",)]),
        ('{"a:{}": ":", "a:{}": "\\":\\""}', [("a:{}",)]),
        ('{"": 1, "": 2}', [("",)]),
        ('{"é": 1, "\\u00e9": 2}', [("é",)]),
    ],
)
def test_a_field_given_twice_is_named(text: str, locs: list[tuple[str | int, ...]]) -> None:
    problem = refusal(text)
    assert problem.code == Code.DUPLICATE_FIELD
    assert [error.loc for error in problem.errors] == locs
    assert "more than once" in problem.detail


def test_long_names_are_told_back_in_part() -> None:
    pairs = ", ".join(f'"{index}{"x" * 5000}": 1' for index in range(99))
    problem = refusal("{" + f"{pairs}, {pairs}" + "}")
    assert problem.code == Code.DUPLICATE_FIELD
    assert len(problem.detail) < 5000


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
def test_the_depth_may_be_64_and_no_more(opening: str, closing: str) -> None:
    levels = opening.count("[") + opening.count("{")
    for depth in (64 // levels, 64 // levels + 1):
        text = opening * depth + "1" + closing * depth
        if depth * levels <= 64:
            documents.parse(text.encode())
        else:
            assert refusal(text).code == Code.TOO_DEEP


def test_depth_is_of_brackets_that_are_open_at_once() -> None:
    documents.parse(json.dumps([[["[" * 999]]] * 999).encode())
    assert refusal("[" * 100_000).code == Code.TOO_DEEP
    assert refusal('{"a":' * 100_000).code == Code.TOO_DEEP
    assert refusal('{"\\"": ' + "[" * 65 + "]" * 65 + "}").code == Code.TOO_DEEP
    assert documents.parse(b"[[1]]", max_depth=2).value == [[1]]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "empty: send a JSON object"),
        (b"  ", "empty: send a JSON object"),
        (b"{", "not valid JSON"),
        (b"{'a': 1}", "not valid JSON"),
        (b'{"a": 1,}', "not valid JSON"),
        (b'{"a": 01}', "not valid JSON"),
        (b'{"a": 1} x', "not valid JSON"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        (b'{"a": "\xc3"}', "not UTF-8"),
        (b'{"a": NaN}', 'as the strings "NaN"'),
        (b'{"a": [-Infinity]}', 'as the strings "NaN"'),
        (b'{"a": 1e999}', "not valid JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not valid JSON"),
        (b'{"a": "\x00"}', "not valid JSON"),
        (b'{"a": "\\x"}', "not valid JSON"),
        (b'{"a": "b', "not valid JSON"),
        (b'{"a": "b\\', "not valid JSON"),
    ],
)
def test_what_is_no_json_is_malformed(text: bytes, says: str) -> None:
    problem = refusal(text)
    assert problem.code == Code.MALFORMED_JSON
    assert says in problem.detail


def test_a_text_that_breaks_off_inside_a_string_of_escapes_is_refused_in_linear_time() -> None:
    # A search from each quote would take hours here, so the timeout is what fails.
    assert refusal(b'{"text": "' + b'\\"' * 1_000_000).code == Code.MALFORMED_JSON


@pytest.mark.parametrize(
    ("text", "loc"),
    [
        ('{"text": "\\ud800"}', ("text",)),
        ('{"text": "\\udc00\\ud800"}', ("text",)),
        ('{"text": ["fine", "\\ud83d\\ude00", "a\\udfffb"]}', ("text", 2)),
        ('{"a": {"b": [{"c": "\\ud800"}]}}', ("a", "b", 0, "c")),
        ('{"a": {"\\ud800": 1}}', ("a", "\\ud800")),
    ],
)
def test_a_lone_surrogate_is_found(text: str, loc: tuple[str | int, ...]) -> None:
    problem = refusal(text)
    assert problem.code == Code.INVALID_FIELD
    assert problem.errors[0].loc == loc
    assert "lone surrogate" in problem.detail


def test_a_pair_of_surrogates_is_a_character() -> None:
    assert documents.parse(b'{"text": "\\ud83d\\ude00"}').value == {"text": "\N{GRINNING FACE}"}


@repeatable
@given(st.binary(max_size=40) | st.text(alphabet='{}[]":,\\a1 tnu', max_size=30).map(str.encode))
def test_any_bytes_are_read_or_refused(text: bytes) -> None:
    try:
        value = documents.parse(text).value
    except ProblemError:
        return
    assert value == json.loads(text)
