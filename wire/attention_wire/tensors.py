"""Tensors ⇄ JSON values and bytes: the only code that turns one into the other.

A tensor in JSON is a nested list, or an object ``{"dtype", "shape", "data"}`` whose data
is base64 of its little-endian, row-major bytes, or a list. ``docs/wire-format.md`` is the
normative text.
"""

from __future__ import annotations

import binascii
import math
import re
import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Literal, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt
import orjson

from attention_wire.problems import InvalidTensor, MalformedTensor

Array: TypeAlias = npt.NDArray[Any]
TensorFormat: TypeAlias = Literal["list", "base64"]
TensorForm: TypeAlias = Literal["list", "base64", "safetensors"]
Buffer: TypeAlias = bytes | bytearray | memoryview

FLOAT_DTYPES: dict[str, np.dtype[Any]] = {
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
}
DTYPES: dict[str, np.dtype[Any]] = {
    **FLOAT_DTYPES,
    "bool": np.dtype("?"),
    "int32": np.dtype("<i4"),
    "int64": np.dtype("<i8"),
}
MAX_RANK = 16
MAX_BYTES = 2**40

_IS_LITTLE = sys.byteorder == "little"
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
# An upper bound of the characters of one element in a list, with its comma; float16 and
# bfloat16 are written with at most as many digits as float32.
_LIST_BYTES = {"float64": 26, "float32": 18, "float16": 18, "bfloat16": 18, "bool": 7}


def dtype_name(array: Array) -> str:
    """The name of an array's dtype on the wire, for example ``float32``."""
    return array.dtype.name


# --- JSON in ---------------------------------------------------------------------------


def from_json(value: object, *, only_numbers: bool = False, integers: bool = False) -> Array:
    """Read a tensor from a parsed JSON value.

    Args:
        value: a nested list, or an object with ``dtype``, ``shape`` and ``data``. Numbers
            in a plain list become float32, true and false become bool.
        integers: the field takes integers: those in a plain list become int64.
        only_numbers: what :attr:`attention_wire.documents.Document.only_numbers` says; it
            spares a look at each element.

    Returns:
        A row-major array; for base64 data a read-only view of the decoded bytes.

    Raises:
        MalformedTensor: base64 or a length cannot be read.
        InvalidTensor: the list is ragged or mixed, or the dtype or shape is not allowed.
    """
    if isinstance(value, dict):
        return _from_object(value, only_numbers=only_numbers)
    if isinstance(value, list):
        dtype = DTYPES["int64"] if integers else None
        return _from_list(value, dtype, only_numbers=only_numbers)
    raise InvalidTensor(
        "expected a nested list of numbers, or an object with dtype, shape and data; "
        f"got {kind_of(value)}"
    )


def _from_object(value: dict[str, Any], *, only_numbers: bool) -> Array:
    if set(value) != {"dtype", "shape", "data"}:
        raise InvalidTensor(
            "a tensor object has exactly the fields dtype, shape and data; "
            f"got {', '.join(sorted(value)) or 'none'}"
        )
    dtype = parse_dtype(value["dtype"])
    shape = check_shape(value["shape"], dtype)
    data = value["data"]
    if isinstance(data, list):
        array = _from_list(data, dtype, only_numbers=only_numbers)
        # No list can hold what comes after a dimension of zero.
        nested = shape[: shape.index(0) + 1] if 0 in shape else shape
        if array.size != math.prod(shape) or array.shape not in ((array.size,), nested):
            raise MalformedTensor(
                f"data holds {array.size} elements in the shape {list(array.shape)}, "
                f"but shape says {list(shape)}: {math.prod(shape)} elements, flat or nested"
            )
        return array.reshape(shape)
    if not isinstance(data, str):
        raise InvalidTensor(f"data must be a base64 string or a list; got {kind_of(data)}")
    try:
        raw = binascii.a2b_base64(data, strict_mode=True)
    except ValueError as error:
        raise MalformedTensor(
            f"data is not base64 (standard alphabet with + and /, padded with =): {error}"
        ) from None
    return from_bytes(raw, dtype, shape)


def parse_dtype(name: object) -> np.dtype[Any]:
    """The dtype of that name.

    Raises:
        InvalidTensor: there is none; the message lists the known names.
    """
    if isinstance(name, str) and name in DTYPES:
        return DTYPES[name]
    raise InvalidTensor(f"unknown dtype {name!r:.60}; known are {', '.join(DTYPES)}")


def check_shape(shape: object, dtype: np.dtype[Any]) -> tuple[int, ...]:
    """A shape as a tuple, once it is one that an array can have.

    Raises:
        InvalidTensor: it is no list of integers ≥ 0, has too many dimensions, or is too
            large, be it for its dimensions beside a zero alone.
    """
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        raise InvalidTensor(f"shape must be a list of integers; got {kind_of(shape)}")
    if len(shape) > MAX_RANK:
        raise InvalidTensor(f"shape has {len(shape)} dimensions; at most {MAX_RANK} are taken")
    for size in shape:
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise InvalidTensor(f"shape must hold integers of 0 or more; got {size!r:.40}")
    # Numpy multiplies all dimensions but the zeros, so a shape can be too large and empty.
    if math.prod(size or 1 for size in shape) * dtype.itemsize > MAX_BYTES:
        raise InvalidTensor(f"shape {list(shape)} is too large: at most 2**40 bytes are taken")
    return tuple(shape)


def from_bytes(raw: Buffer, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """An array over little-endian, row-major bytes: a view where they are aligned.

    Raises:
        MalformedTensor: the bytes are too few or too many for the shape, or a bool is
            neither 0 nor 1.
    """
    expected = math.prod(shape) * dtype.itemsize
    if len(raw) != expected:
        raise MalformedTensor(
            f"data holds {len(raw)} bytes, but {dtype.name} of shape {list(shape)} takes {expected}"
        )
    if dtype.kind == "b" and np.frombuffer(raw, np.uint8).max(initial=0) > 1:
        raise MalformedTensor("a bool is a byte of 0 or 1; data holds other bytes")
    array = np.frombuffer(raw, dtype).reshape(shape)
    return array if array.flags.aligned else array.copy()


def _from_list(value: list[Any], dtype: np.dtype[Any] | None, *, only_numbers: bool) -> Array:
    if only_numbers and (dtype is None or dtype.kind not in "bi"):
        target = dtype or FLOAT_DTYPES["float32"]
        try:
            return _array(value, target)
        except (ValueError, TypeError, OverflowError):
            pass  # ragged, or an integer past every float: the careful way says where
    shape, flat = _flatten(value)
    return _typed(flat, dtype).reshape(shape)


def _flatten(value: list[Any]) -> tuple[tuple[int, ...], list[Any]]:
    """The shape of a nested list, and its elements in row-major order."""
    shape = [len(value)]
    flat = value
    while any(isinstance(item, list) for item in flat):
        lengths = {len(item) if isinstance(item, list) else -1 for item in flat}
        if len(lengths) > 1:
            raise InvalidTensor(_ragged(flat, shape))
        shape.append(lengths.pop())
        flat = list(chain.from_iterable(flat))
    return tuple(shape), flat


def _ragged(items: list[Any], shape: list[int]) -> str:
    def length(item: object) -> int:
        return len(item) if isinstance(item, list) else -1

    def size(item: object) -> str:
        return f"{len(item)} elements" if isinstance(item, list) else kind_of(item)

    odd = next(i for i, item in enumerate(items) if length(item) != length(items[0]))
    where = "".join(f"[{index}]" for index in np.unravel_index(odd, shape))
    first = "[0]" * len(shape)
    return (
        f"ragged list: {where} holds {size(items[odd])} where {first} holds {size(items[0])}; "
        "all rows of a tensor have one length"
    )


def _typed(flat: list[Any], dtype: np.dtype[Any] | None) -> Array:
    kinds = set(map(type, flat))
    if dtype is None:
        dtype = DTYPES["bool"] if kinds == {bool} else FLOAT_DTYPES["float32"]
    allowed: dict[str, set[type]] = {"b": {bool}, "i": {int}}
    strange = kinds - allowed.get(dtype.kind, {int, float, str})
    if strange:
        example = next(item for item in flat if type(item) in strange)
        raise InvalidTensor(f"a list of {dtype.name} cannot hold {kind_of(example)}")
    if str in kinds:
        flat = [_number(item) if isinstance(item, str) else item for item in flat]
    try:
        return _array(flat, dtype)
    except OverflowError:
        raise InvalidTensor(f"a number is out of the range of {dtype.name}") from None


def _array(value: list[Any], dtype: np.dtype[Any]) -> Array:
    """A list of numbers as an array, those past a float's range as infinity."""
    # ml_dtypes takes no integers of 64 bits and rounds by way of float32 too.
    numpys = FLOAT_DTYPES["float32"] if dtype.name == "bfloat16" else dtype
    with np.errstate(over="ignore"):
        return np.array(value, numpys).astype(dtype, copy=False)


def _number(word: str) -> float:
    try:
        return _NON_FINITE[word]
    except KeyError:
        raise InvalidTensor(
            f"cannot hold the string {word!r:.60}; of strings only "
            f"{', '.join(map(repr, _NON_FINITE))} stand for numbers"
        ) from None


def kind_of(value: object) -> str:
    """The JSON name of a value's type, as a caller would say it."""
    if value is None:
        return "null"
    names: dict[type, str] = {
        bool: "true or false", int: "a number", float: "a number", str: "a string",
        list: "a list", dict: "an object", np.ndarray: "a tensor",
    }  # fmt: skip
    return names.get(type(value), type(value).__name__)


# --- JSON out --------------------------------------------------------------------------


def to_json(array: Array, tensor_format: TensorFormat) -> object:
    """What orjson (with ``OPT_SERIALIZE_NUMPY``) writes for a tensor.

    Non-finite numbers become the strings "NaN", "Infinity" and "-Infinity" in lists, since
    JSON has no numbers for them.
    """
    array = _little_endian(array)
    if not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    if tensor_format == "base64":
        return {
            "dtype": dtype_name(array),
            "shape": list(array.shape),
            "data": binascii.b2a_base64(as_bytes(array), newline=False).decode("ascii"),
        }
    if array.dtype == FLOAT_DTYPES["bfloat16"]:
        array = array.astype(np.float32)
    if array.dtype.kind == "f" and not _is_finite(array):
        return _named_non_finite(array)
    if array.size == 0:
        return array.tolist()
    return array if array.ndim else array[()]


def _is_finite(array: Array) -> bool:
    """Whether no number is NaN or infinite."""
    if array.itemsize >= np.dtype(np.float32).itemsize:
        # One sum says so of most arrays. It may overflow where no number is infinite.
        flat = array.reshape(-1)
        with np.errstate(over="ignore", invalid="ignore"):
            if math.isfinite(np.dot(flat, flat)):
                return True
    return bool(np.isfinite(array).all())


def _named_non_finite(array: Array) -> orjson.Fragment:
    """The array's list with words where orjson writes null: in order, one for each."""
    words = iter([_word(number) for number in array[~np.isfinite(array)].tolist()])
    plain = array if array.ndim else array[()]
    text = orjson.dumps(plain, option=orjson.OPT_SERIALIZE_NUMPY)
    return orjson.Fragment(re.sub(b"null", lambda _: next(words), text))


def _word(number: float) -> bytes:
    return b'"NaN"' if math.isnan(number) else b'"Infinity"' if number > 0 else b'"-Infinity"'


def as_bytes(array: Array) -> memoryview:
    """An array's little-endian, row-major bytes, without a copy where it has them."""
    if _IS_LITTLE and array.dtype == np.float32 and array.size and array.flags.c_contiguous:
        return array.data.cast("B")  # as below, at a tenth of its price, which small calls feel
    return np.ascontiguousarray(_little_endian(array)).reshape(-1).view(np.uint8).data


def _little_endian(array: Array) -> Array:
    """The array with its bytes in the wire's order, which few files of big endian have."""
    if _IS_LITTLE and array.dtype.isnative:
        return array
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def json_bound(shapes: Mapping[str, tuple[tuple[int, ...], str]], form: TensorForm) -> int:
    """An upper bound in bytes of tensors of these shapes and dtypes, by wire form.

    Args:
        shapes: name → (shape, dtype name).
        form: ``list``, ``base64`` or ``safetensors``.
    """
    total = 0
    for shape, name in shapes.values():
        size = math.prod(shape)
        if form == "list":
            # A list of no lists is written too: [[],[]] holds nothing in eight bytes.
            lists = sum(math.prod(shape[:axis]) for axis in range(len(shape)))
            total += size * _LIST_BYTES.get(name, 22) + 3 * lists
        else:
            raw = size * DTYPES[name].itemsize
            total += raw if form == "safetensors" else 4 * (raw // 3 + 1)
    return total
