"""The safetensors layout against the format's own library, in both directions."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors as library
import safetensors.numpy as library_numpy
from hypothesis import given
from hypothesis import strategies as st

from attention_wire import safetensors
from attention_wire.problems import Code, ProblemError
from attention_wire.tensors import DTYPES, Array
from tests.wire.strategies import arrays, dtype_names, repeatable

# Tensors by name, as the library has them; it knows no bfloat16 in numpy.
named = st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
    arrays(dtype_names.filter(lambda name: name != "bfloat16")),
    max_size=5,
)
metadata = st.dictionaries(st.text(max_size=6), st.text(max_size=20), min_size=1, max_size=3)
BF16_ONE_AND_TWO = b"\x80\x3f\x00\x40"


def written(tensors: dict[str, Array], about: dict[str, str]) -> bytes:
    return b"".join(safetensors.write(tensors, about))


def body(header: object, data: bytes = b"", *, padding: int = 0) -> bytes:
    text = (json.dumps(header) if not isinstance(header, bytes) else header.decode()).encode()
    text += b" " * padding
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def assert_same(left: dict[str, Array], right: dict[str, Array]) -> None:
    assert set(left) == set(right)
    for name, array in left.items():
        assert array.dtype == right[name].dtype
        assert array.shape == right[name].shape
        assert array.tobytes() == right[name].tobytes()


# --- The library reads what we write, and the other way round --------------------------


@repeatable
@given(named, metadata)
def test_the_library_reads_what_we_write(tensors: dict[str, Array], about: dict[str, str]) -> None:
    assert_same(library_numpy.load(written(tensors, about)), tensors)


@repeatable
@given(named, metadata)
def test_we_read_what_the_library_writes(tensors: dict[str, Array], about: dict[str, str]) -> None:
    contiguous = {name: np.ascontiguousarray(a).reshape(a.shape) for name, a in tensors.items()}
    read, told = safetensors.read(library_numpy.save(contiguous, about))
    assert_same(read, tensors)
    assert told == about


def test_the_library_reads_our_metadata(tmp_path: Path) -> None:
    path = tmp_path / "body.safetensors"
    about = {"response": '{"module":"é\\n"}'}
    path.write_bytes(written({"a": np.ones((2, 3), np.float32)}, about))
    with library.safe_open(path, framework="numpy") as file:
        assert file.metadata() == about
        assert file.get_tensor("a").tolist() == [[1, 1, 1], [1, 1, 1]]


def test_bfloat16_goes_both_ways() -> None:
    array = np.array([1, 2], DTYPES["bfloat16"])
    ((name, told),) = library.deserialize(written({"a": array}, {}))
    assert name == "a"
    assert told["dtype"] == "BF16"
    assert bytes(told["data"]) == BF16_ONE_AND_TWO
    theirs = library_numpy.save({"a": array}, {"request": "{}"})
    assert theirs.endswith(BF16_ONE_AND_TWO)
    tensors, about = safetensors.read(theirs)
    assert_same(tensors, {"a": array})
    assert about == {"request": "{}"}


@repeatable
@given(st.dictionaries(st.text(max_size=6), arrays(), max_size=4))
def test_we_read_what_we_write(tensors: dict[str, Array]) -> None:
    tensors.pop("__metadata__", None)
    assert_same(safetensors.read(written(tensors, {}))[0], tensors)


def test_what_is_not_contiguous_is_written_in_row_major_order() -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1)[::2]
    read = library_numpy.load(written({"a": array}, {}))["a"]
    assert read.tolist() == array.tolist()


# --- Views and copies ------------------------------------------------------------------


def test_every_tensor_of_our_own_is_viewed_in_an_aligned_body() -> None:
    tensors = {
        "odd": np.ones(3, bool),
        "half": np.ones(5, np.float16),
        "double": np.ones(3, np.float64),
        "single": np.ones((1, 3), np.float32),
        "none": np.ones((0, 3), np.float32),
    }
    raw = written(tensors, {"request": '{"is_causal": true}'})
    room = np.zeros(len(raw) // 8 + 1, np.uint64).view(np.uint8)
    room[: len(raw)] = np.frombuffer(raw, np.uint8)
    read, _ = safetensors.read(memoryview(room)[: len(raw)])
    assert_same(read, tensors)
    for array in read.values():
        assert array.size == 0 or np.shares_memory(array, room)


def test_a_tensor_that_lies_misaligned_is_copied() -> None:
    numbers = np.arange(4, dtype=np.float64)
    header = {"a": entry([1], 0, 1, "BOOL"), "b": entry([4], 1, 33, "F64")}
    raw = body(header, b"\x01" + numbers.tobytes())
    room = np.frombuffer(bytearray(raw), np.uint8)
    read, _ = safetensors.read(memoryview(room))
    assert read["b"].tolist() == [0, 1, 2, 3]
    assert read["b"].flags.aligned
    assert not np.shares_memory(read["b"], room)
    assert np.shares_memory(read["a"], room)


# --- Refusals --------------------------------------------------------------------------

FOUR, EIGHT = b"\0" * 4, b"\0" * 8
LYING: list[tuple[str, bytes, str]] = [
    ("no length", b"\0\0\0", "its header's length alone takes 8"),
    ("empty", b"", "its header's length alone takes 8"),
    ("header past the body", struct.pack("<Q", 99) + b"{}", "name a header of 99 bytes"),
    ("huge header", b"\xff" * 8 + b"{}", "name a header of 18446744073709551615 bytes"),
    ("header too long", body({}, padding=2**24), "a header at most 16777216"),
    ("header is no object", body([1]), "must be a JSON object"),
    ("metadata is no object", body({"__metadata__": []}), "an object of strings"),
    ("metadata of numbers", body({"__metadata__": {"a": 1}}), "an object of strings"),
    ("hole before", body({"a": entry([1], 4, 8)}, EIGHT), "[4, 8] must begin at 0"),
    (
        "hole between",
        body({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, EIGHT + FOUR),
        "[8, 12] must begin at 4",
    ),
    (
        "overlap",
        body({"a": entry([2], 0, 8), "b": entry([1], 4, 8)}, EIGHT),
        "[4, 8] must begin at 8",
    ),
    (
        "one place twice",
        body({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, FOUR),
        "[0, 4] must begin at 4",
    ),
    ("end before begin", body({"a": entry([1], 0, -4)}, FOUR), "[0, -4] must begin"),
    ("negative begin", body({"a": entry([1], -4, 0)}, FOUR), "[-4, 0] must begin"),
    ("past the data", body({"a": entry([2], 0, 8)}, FOUR), "past the 4 bytes of data"),
    ("bytes left over", body({"a": entry([1], 0, 4)}, EIGHT), "4 bytes follow the last tensor"),
    ("data without tensors", body({}, FOUR), "4 bytes follow the last tensor"),
    ("too few bytes", body({"a": entry([2], 0, 4)}, FOUR), "float32 of shape [2] takes 8"),
    ("too many bytes", body({"a": entry([1], 0, 8)}, EIGHT), "float32 of shape [1] takes 4"),
    ("no offsets", body({"a": {"dtype": "F32", "shape": [1]}}), "two data_offsets"),
    ("offsets of floats", body({"a": entry([1], 0.0, 4.0)}, FOUR), "two data_offsets"),  # type: ignore[arg-type]
    ("entry is a list", body({"a": [1]}), "two data_offsets"),
    ("a field more", body({"a": entry([1], 0, 4) | {"x": 1}}, FOUR), "unknown fields"),
    ("bool of 2", body({"a": entry([1], 0, 1, "BOOL")}, b"\x02"), "a bool is a byte of 0 or 1"),
]


@pytest.mark.parametrize(("raw", "says"), [case[1:] for case in LYING], ids=[c[0] for c in LYING])
def test_a_body_that_lies_is_malformed(raw: bytes, says: str) -> None:
    with pytest.raises(ProblemError) as caught:
        safetensors.read(raw)
    assert caught.value.code == Code.MALFORMED_TENSOR
    assert says in caught.value.detail


@pytest.mark.parametrize(
    ("raw", "code", "says"),
    [
        (body({"a": entry([1], 0, 4, "F8_E4M3")}, FOUR), Code.INVALID_TENSOR, "unknown dtype"),
        (body({"a": entry([1], 0, 4, "U32")}, FOUR), Code.INVALID_TENSOR, "known are F16, BF16"),
        (body({"a": entry([-1], 0, 4)}, FOUR), Code.INVALID_TENSOR, "0 or more; got -1"),
        (body({"a": entry([2**63], 0, 4)}, FOUR), Code.INVALID_TENSOR, "too large"),
        (body({"a": entry([1] * 17, 0, 4)}, FOUR), Code.INVALID_TENSOR, "17 dimensions"),
        (body(b'{"a": '), Code.MALFORMED_JSON, "not valid JSON"),
        (body(b'{"a": {}, "a": {}}'), Code.DUPLICATE_FIELD, "a"),
        (
            body(b'{"__metadata__": {"request": "", "request": ""}}'),
            Code.DUPLICATE_FIELD,
            "request",
        ),
        (body(b"[" * 65 + b"]" * 65), Code.TOO_DEEP, "64 levels"),
    ],
)
def test_a_header_that_cannot_be_used_says_why(raw: bytes, code: Code, says: str) -> None:
    with pytest.raises(ProblemError) as caught:
        safetensors.read(raw)
    assert caught.value.code == code
    assert says in caught.value.detail


def test_a_body_is_known_by_its_beginning() -> None:
    raw = body({"a": entry([1], 0, 4)}, FOUR)
    assert safetensors.is_likely(raw)
    assert safetensors.is_likely(body({}))
    for other in (b"", raw[:8], raw[:-5], b"       {}", b'{"a":1,{', raw.replace(b"\0", b"")):
        assert not safetensors.is_likely(other)


def test_what_is_wrong_names_its_tensor() -> None:
    with pytest.raises(ProblemError) as caught:
        safetensors.read(body({"fine": entry([0], 0, 0), "key": entry([2], 0, 4)}, FOUR))
    assert [error.loc for error in caught.value.errors] == [("key",)]


@repeatable
@given(st.data(), named)
def test_a_damaged_body_is_refused_or_read_as_the_library_reads_it(
    data: st.DataObject, tensors: dict[str, Array]
) -> None:
    raw = bytearray(written(tensors, {"request": "{}"}))
    place = data.draw(st.integers(0, len(raw) - 1))
    if data.draw(st.booleans()):
        del raw[place:]
    else:
        raw[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        read, _ = safetensors.read(bytes(raw))
    except ProblemError:
        return
    assert_same(library_numpy.load(bytes(raw)), read)
