"""Tensors ⇄ JSON values and bytes, against struct, base64 and the formats' own definitions."""

from __future__ import annotations

import base64
import math
import struct
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attention_wire import bodies, documents
from attention_wire.problems import InvalidTensor, MalformedTensor
from attention_wire.tensors import (
    DTYPES,
    FLOAT_DTYPES,
    Array,
    from_bytes,
    from_json,
    json_bound,
    parse_dtype,
    to_json,
)
from tests.wire.strategies import arrays, repeatable, same, shapes

F32, F64, BF16 = DTYPES["float32"], DTYPES["float64"], DTYPES["bfloat16"]
# Each has the most digits, or the longest exponent, that its dtype's shortest text needs.
HOSTILE = [
    -1.17549435e-38, -3.4028235e38, -1.1754942e-38, -9.999999e-38, -1.4e-45, -0.0, 0.1, 1e-5,
    16777216.0, -1.0000001e-30, -2.2250738585072014e-308, -1.7976931348623157e308, -5e-324,
    -1.2345678901234567e-300, -3.4028235e15, -9007199254740992.0, math.nan, math.inf, -math.inf,
    65504.0, -6.1035156e-5, -5.9604645e-8,
]  # fmt: skip


def encoded(dtype: str, shape: list[int], raw: bytes) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data": base64.b64encode(raw).decode()}


def through_json(array: Array) -> Any:
    """The array's list, written by the wire and read by a parser of JSON."""
    return documents.parse(bytes(bodies.write(bodies.JSON, {"a": array}, "response"))).value["a"]


# --- Round trips -----------------------------------------------------------------------


@repeatable
@given(arrays())
def test_base64_keeps_every_bit(array: Array) -> None:
    back = from_json(orjson.loads(orjson.dumps(to_json(array, "base64"))))
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


@repeatable
@given(arrays())
def test_a_list_with_its_dtype_keeps_every_value(array: Array) -> None:
    fields = {"dtype": array.dtype.name, "shape": list(array.shape)}
    nested = through_json(array)
    if array.ndim:
        assert same(from_json({**fields, "data": nested}), array)
    flat = through_json(array.reshape(-1))
    assert same(from_json({**fields, "data": flat}), array)


@repeatable
@given(arrays(st.sampled_from(["float32", "bool"]), shapes.filter(lambda shape: len(shape) > 0)))
def test_a_plain_list_keeps_float32_and_bool(array: Array) -> None:
    back = from_json(through_json(array))
    if array.size:
        assert same(back, array)
    else:  # a list of no lists cannot say how long they would be
        assert back.shape == array.shape[: array.shape.index(0) + 1]


@repeatable
@given(st.lists(st.floats(width=32), max_size=9))
def test_base64_is_little_endian_as_struct_has_it(numbers: list[float]) -> None:
    raw = struct.pack(f"<{len(numbers)}f", *numbers)
    array = np.array(numbers, F32)
    assert to_json(array, "base64") == encoded("float32", [len(numbers)], raw)


@repeatable
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=9))
def test_bfloat16_is_the_upper_half_of_float32_rounded_to_even(numbers: list[float]) -> None:
    bits = np.frombuffer(struct.pack(f"<{len(numbers)}f", *numbers), np.uint32).astype(np.uint64)
    expected = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    words = [x if math.isfinite(x) else "Infinity" if x > 0 else "-Infinity" for x in numbers]
    array = from_json({"dtype": "bfloat16", "shape": [len(numbers)], "data": words})
    assert array.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "dtype", [d for name, d in DTYPES.items() if d.itemsize > 1 and name != "bfloat16"]
)
def test_an_array_of_the_other_byte_order_is_written_in_the_wires(dtype: np.dtype[Any]) -> None:
    array = np.array([0, 1, 0, 1], dtype)
    foreign = array.astype(dtype.newbyteorder(">"))
    assert to_json(foreign, "base64") == to_json(array, "base64")
    assert through_json(foreign) == through_json(array)
    files = [bytes(bodies.write(bodies.SAFETENSORS, {"a": a}, "request")) for a in (foreign, array)]
    assert files[0] == files[1]


def test_non_finite_numbers_are_named_and_never_null() -> None:
    array = np.array([[math.nan, math.inf], [-math.inf, 1]], F32)
    text = bytes(bodies.write(bodies.JSON, {"a": array}, "response"))
    assert text == b'{"a":[["NaN","Infinity"],["-Infinity",1.0]]}'


def test_a_number_past_a_floats_range_is_infinite() -> None:
    for name, number in [("float16", 7e4), ("bfloat16", 3.5e38), ("float32", -1e39)]:
        array = from_json({"dtype": name, "shape": [1], "data": [number]}, only_numbers=True)
        assert array.tolist() == [math.copysign(math.inf, number)]


@pytest.mark.parametrize("only_numbers", [False, True])
@pytest.mark.parametrize("name", FLOAT_DTYPES)
def test_the_largest_integers_of_json_are_numbers(name: str, only_numbers: bool) -> None:
    data = [2**64 - 1, -(2**63), 1]
    array = from_json({"dtype": name, "shape": [3], "data": data}, only_numbers=only_numbers)
    past = name == "float16"
    expected = [math.inf, -math.inf, 1] if past else [2.0**64, -(2.0**63), 1]
    assert array.astype(F64).tolist() == expected


def test_rank_0_is_one_number() -> None:
    assert from_json(encoded("float32", [], struct.pack("<f", 2.5))).shape == ()
    assert from_json({"dtype": "int64", "shape": [], "data": [7]}).tolist() == 7
    assert through_json(np.array(2.5, F32)) == 2.5
    assert to_json(np.array(2.5, F32), "base64") == encoded("float32", [], struct.pack("<f", 2.5))


def test_numbers_are_rounded_once_to_the_dtype_asked_for() -> None:
    number = 0.1
    for name, code in [("float16", "e"), ("float32", "f"), ("float64", "d")]:
        array = from_json({"dtype": name, "shape": [1], "data": [number]})
        assert array.tobytes() == struct.pack(f"<{code}", number)


# --- Views and copies ------------------------------------------------------------------


@pytest.mark.parametrize("offset", range(9))
def test_aligned_bytes_are_viewed_and_others_copied(offset: int) -> None:
    room = np.zeros(64, np.uint64).view(np.uint8)  # aligned to eight bytes
    numbers = np.arange(4, dtype=F64)
    room[offset : offset + 32] = numbers.view(np.uint8)
    array = from_bytes(memoryview(room)[offset : offset + 32], F64, (2, 2))
    assert array.tolist() == [[0, 1], [2, 3]]
    assert array.flags.aligned
    assert np.shares_memory(array, room) == (offset % 8 == 0)


# --- Refusals --------------------------------------------------------------------------

RAGGED = [
    ([[1, 2], [3]], r"\[1\] holds 1 elements where \[0\] holds 2 elements"),
    ([[1, 2], 3], r"\[1\] holds a number where \[0\] holds 2 elements"),
    ([1, [2]], r"\[1\] holds 1 elements where \[0\] holds a number"),
    ([[1, 2], [3, [4]]], r"\[1\]\[1\] holds 1 elements where \[0\]\[0\] holds a number"),
    ([[[1], [2]], [[3], [4, 5]]], r"\[1\]\[1\] holds 2 elements where \[0\]\[0\] holds 1 "),
    ([[[1, 2]], [[3, 4], [5, 6]]], r"\[1\] holds 2 elements where \[0\] holds 1 "),
    ([[], [1]], r"\[1\] holds 1 elements where \[0\] holds 0 "),
    ([1, "NaN", [2]], r"\[2\] holds 1 elements"),
    ([[True], [True, False]], r"\[1\] holds 2 elements"),
]


@pytest.mark.parametrize(
    ("value", "message", "only_numbers"),
    [
        (value, message, fast)
        for value, message in RAGGED
        for fast in ([False] if "NaN" in value else [False, True])
    ],
    ids=lambda v: str(v)[:24],
)
def test_a_ragged_list_is_refused_with_its_place(
    value: list[Any], message: str, only_numbers: bool
) -> None:
    with pytest.raises(InvalidTensor, match=f"ragged list: {message}"):
        from_json(value, only_numbers=only_numbers)


REFUSED = [
    (None, "got null"),
    (3, "got a number"),
    ("AAAA", "got a string"),
    (True, "got true or false"),
    ([None], "float32 cannot hold null"),
    ([1, None], "float32 cannot hold null"),
    ([{}], "float32 cannot hold an object"),
    ([1, True], "float32 cannot hold true or false"),
    (["nan"], "cannot hold the string 'nan'"),
    (["1"], "cannot hold the string '1'"),
    (["inf" * 999], "cannot hold the string"),
    ({"dtype": "float32", "shape": [1]}, "exactly the fields dtype, shape and data"),
    ({}, "exactly the fields dtype, shape and data; got none"),
    ({"dtype": "float8", "shape": [1], "data": [1]}, "unknown dtype 'float8'; known are float16"),
    ({"dtype": "F32", "shape": [1], "data": [1]}, "unknown dtype 'F32'"),
    ({"dtype": None, "shape": [1], "data": [1]}, "unknown dtype None"),
    ({"dtype": ["float32"], "shape": [1], "data": [1]}, "unknown dtype"),
    ({"dtype": "float32", "shape": [-1], "data": ""}, "0 or more; got -1"),
    ({"dtype": "float32", "shape": [1.0], "data": [1]}, "0 or more; got 1.0"),
    ({"dtype": "float32", "shape": [True], "data": [1]}, "0 or more; got True"),
    ({"dtype": "float32", "shape": "1", "data": [1]}, "shape must be a list of integers"),
    ({"dtype": "float32", "shape": None, "data": [1]}, "shape must be a list of integers"),
    ({"dtype": "float32", "shape": [1] * 17, "data": [1]}, "17 dimensions; at most 16"),
    ({"dtype": "float32", "shape": [2**64 - 1] * 16, "data": ""}, "too large"),
    ({"dtype": "float32", "shape": [2**40, 0], "data": ""}, "too large"),
    ({"dtype": "float32", "shape": [1], "data": None}, "base64 string or a list; got null"),
    ({"dtype": "float32", "shape": [1], "data": {}}, "base64 string or a list; got an object"),
    ({"dtype": "bool", "shape": [1], "data": [1]}, "bool cannot hold a number"),
    ({"dtype": "bool", "shape": [1], "data": ["NaN"]}, "bool cannot hold a string"),
    ({"dtype": "int32", "shape": [1], "data": [1.5]}, "int32 cannot hold a number"),
    ({"dtype": "int32", "shape": [1], "data": [True]}, "int32 cannot hold true or false"),
    ({"dtype": "int32", "shape": [1], "data": ["NaN"]}, "int32 cannot hold a string"),
    ({"dtype": "int32", "shape": [1], "data": [2**31]}, "out of the range of int32"),
    ({"dtype": "int32", "shape": [1], "data": [-(2**31) - 1]}, "out of the range of int32"),
    ({"dtype": "int64", "shape": [1], "data": [2**63]}, "out of the range of int64"),
    ({"dtype": "float32", "shape": [1], "data": [True]}, "float32 cannot hold true or false"),
]


@pytest.mark.parametrize(("value", "message"), REFUSED, ids=lambda v: str(v)[:48])
def test_what_is_no_tensor_is_refused(value: object, message: str) -> None:
    with pytest.raises(InvalidTensor) as refused:
        from_json(value)
    assert message in str(refused.value)
    assert len(str(refused.value)) < 500, "the caller's own text is not told back whole"


MALFORMED = [
    ("float32", [1], "AACAPw", "not base64"),
    ("float32", [1], "AACAPw=", "not base64"),
    ("float32", [1], "AACAPw==\n", "not base64"),
    ("float32", [1], "AAC-_w==", "not base64"),
    ("float32", [1], "AAC APw=", "not base64"),
    ("float32", [1], "€€€€", "not base64"),
    ("float32", [1], "AACAPw==AAAA", "not base64"),
    ("float32", [1], "", "holds 0 bytes, but float32 of shape [1] takes 4"),
    ("float32", [2], "AACAPw==", "holds 4 bytes, but float32 of shape [2] takes 8"),
    ("float32", [0], "AACAPw==", "holds 4 bytes, but float32 of shape [0] takes 0"),
    ("float32", [2**30], "AACAPw==", "takes 4294967296"),
    ("bool", [1], "Ag==", "a bool is a byte of 0 or 1"),
    ("float32", [2], [1], "data holds 1 elements in the shape [1], but shape says [2]"),
    ("float32", [2, 3], [[1, 2], [3, 4], [5, 6]], "in the shape [3, 2], but shape says [2, 3]"),
    ("float32", [0], [1], "data holds 1 elements"),
]


@pytest.mark.parametrize(("dtype", "shape", "data", "message"), MALFORMED)
def test_data_that_does_not_fill_its_shape_is_malformed(
    dtype: str, shape: list[int], data: object, message: str
) -> None:
    with pytest.raises(MalformedTensor) as refused:
        from_json({"dtype": dtype, "shape": shape, "data": data})
    assert message in str(refused.value)


def test_each_dtype_goes_by_its_name() -> None:
    assert [parse_dtype(name).itemsize for name in ("float16", "bfloat16", "float64")] == [2, 2, 8]
    with pytest.raises(InvalidTensor, match="known are float16, bfloat16, float32"):
        parse_dtype("complex64")


# --- The fast way is the careful way ---------------------------------------------------

numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
ragged = st.recursive(numbers, lambda inner: st.lists(inner, max_size=3), max_leaves=12)


@repeatable
@given(st.lists(ragged, max_size=4), st.sampled_from([None, "float16", "bfloat16", "float64"]))
def test_a_list_of_numbers_reads_alike_both_ways(value: list[Any], dtype: str | None) -> None:
    def outcome(*, only_numbers: bool) -> Array | str:
        whole = value if dtype is None else {"dtype": dtype, "shape": [len(value)], "data": value}
        try:
            return from_json(whole, only_numbers=only_numbers)
        except (InvalidTensor, MalformedTensor) as error:
            return str(error)

    fast, careful = outcome(only_numbers=True), outcome(only_numbers=False)
    if isinstance(fast, str) or isinstance(careful, str):
        assert fast == careful
    else:
        assert same(fast, careful)


# --- The bound of an answer ------------------------------------------------------------

hostile_arrays = st.builds(
    lambda name, numbers, shape: np.resize(numbers, shape).astype(DTYPES[name]),
    st.sampled_from(sorted(FLOAT_DTYPES)),
    st.lists(st.sampled_from(HOSTILE) | st.floats(width=32), min_size=1, max_size=4),
    st.lists(st.sampled_from([0, 1, 1, 2, 7]), max_size=6).map(tuple),
)


@repeatable
@given(st.lists(arrays() | hostile_arrays, min_size=1, max_size=3))
@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_no_answer_is_larger_than_its_bound(tensors: list[Array]) -> None:
    fields = {str(index): array for index, array in enumerate(tensors)}
    shapes = {name: (array.shape, array.dtype.name) for name, array in fields.items()}
    names = sum(len(f'"{name}":,') for name in fields)
    as_list = bytes(bodies.write(bodies.JSON, fields, "response"))
    assert len(as_list) - names <= json_bound(shapes, "list")
    as_base64 = orjson.loads(bytes(bodies.write(bodies.JSON, fields, "response", "base64")))
    data = sum(len(tensor["data"]) for tensor in as_base64.values())
    assert data <= json_bound(shapes, "base64")
    header, *buffers = bodies.write(bodies.SAFETENSORS, fields, "response").buffers
    assert sum(map(len, buffers)) == json_bound(shapes, "safetensors")
    assert len(header) < 200 * (1 + len(fields))


def test_lists_of_nothing_count_too() -> None:
    shapes = {"output": ((2**20, 2**10, 0, 8), "float32")}
    assert json_bound(shapes, "list") >= 2 * 2**30
    assert json_bound(shapes, "base64") < 100
