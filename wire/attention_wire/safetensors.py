"""The safetensors layout, read as views of the body and written as buffers.

Layout (https://github.com/huggingface/safetensors): eight bytes with the header's length,
little-endian; the header, a JSON object of ``name → {dtype, shape, data_offsets}`` and
``__metadata__``; then the tensors' bytes. Ours rather than the library's, since that one
copies every tensor and knows no bfloat16 in numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import orjson

from attention_wire import documents
from attention_wire.problems import Code, ProblemError, TensorError
from attention_wire.tensors import (
    DTYPES,
    Array,
    Buffer,
    as_bytes,
    check_shape,
    dtype_name,
    from_bytes,
)

_NAMES = {
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "bool": "BOOL",
    "int32": "I32",
    "int64": "I64",
}
_DTYPES = {theirs: DTYPES[ours] for ours, theirs in _NAMES.items()}
LENGTH_BYTES = 8
MAX_HEADER_BYTES = 16 * 2**20


class Layout(NamedTuple):
    """What a header says of the bytes behind it.

    Attributes:
        tensors: name → dtype, shape, and where its bytes begin and end, in their order.
        metadata: as it is.
        data_bytes: of all tensors.
    """

    tensors: Mapping[str, tuple[np.dtype[Any], tuple[int, ...], int, int]]
    metadata: Mapping[str, str]
    data_bytes: int


def read(body: Buffer) -> tuple[dict[str, Array], dict[str, str]]:
    """The tensors and the metadata of a safetensors body.

    Args:
        body: the whole body. Tensors that lie aligned in it are views of it, others copies.

    Raises:
        ProblemError: ``malformed_tensor`` where lengths, offsets, dtypes or shapes do not
            fit, with the tensor's name; ``malformed_json`` or ``duplicate_field`` for the header.
    """
    view = memoryview(body).cast("B")
    text = header(view)
    found = layout(text)
    return tensors(found, view[LENGTH_BYTES + len(text) :]), dict(found.metadata)


def is_likely(body: Buffer) -> bool:
    """Whether a body begins as this layout does, as no JSON text can."""
    view = memoryview(body).cast("B")
    length, rest = int.from_bytes(view[:LENGTH_BYTES], "little"), view[LENGTH_BYTES:]
    return rest[:1].tobytes() == b"{" and length <= len(rest)


def header(body: memoryview) -> bytes:
    """The header of a body, as it came.

    Raises:
        ProblemError: ``malformed_tensor``, where the lengths do not fit.
    """
    if len(body) < LENGTH_BYTES:
        raise _malformed(f"the body has {len(body)} bytes; its header's length alone takes 8")
    length = int.from_bytes(body[:LENGTH_BYTES], "little")
    end = LENGTH_BYTES + length
    if length > MAX_HEADER_BYTES or end > len(body):
        raise _malformed(
            f"the first 8 bytes name a header of {length} bytes, but the body has {len(body)} "
            f"and a header at most {MAX_HEADER_BYTES} (curl sends files as they are with "
            "--data-binary, not with -d)"
        )
    return bytes(body[LENGTH_BYTES:end])


def layout(text: bytes) -> Layout:
    """What a header says.

    Raises:
        ProblemError: as :func:`read` does.
    """
    found = documents.parse(text, what="The header of the safetensors body").value
    if not isinstance(found, dict):
        raise _malformed("the header must be a JSON object")
    metadata = found.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _malformed("__metadata__ must be an object of strings")
    end = 0
    entries = {name: _entry(name, entry) for name, entry in found.items()}
    in_order = dict(sorted(entries.items(), key=lambda item: item[1][2:]))
    for name, (_, _, begin, stop) in in_order.items():
        if begin != end or stop < begin:
            raise _wrong(
                name,
                f"data_offsets [{begin}, {stop}] must begin at {end}, where the tensor before "
                "ends: no holes, no overlaps",
            )
        end = stop
    return Layout(in_order, metadata, end)


def places(body: memoryview) -> dict[str, tuple[int, int]]:
    """Where in a body the bytes of each tensor begin and end.

    Raises:
        ProblemError: ``malformed_safetensors``.
    """
    text = header(body)
    start = LENGTH_BYTES + len(text)
    return {
        name: (start + begin, start + end)
        for name, (*_, begin, end) in layout(text).tensors.items()
    }


def tensors(found: Layout, data: memoryview) -> dict[str, Array]:
    """The tensors of a layout.

    Args:
        found: what the header says.
        data: the bytes behind the header.

    Raises:
        ProblemError: ``malformed_tensor``, where the lengths do not fit.
    """
    arrays: dict[str, Array] = {}
    for name, (dtype, shape, begin, stop) in found.tensors.items():
        if stop > len(data):
            raise _wrong(name, f"data_offsets end at {stop}, past the {len(data)} bytes of data")
        arrays[name] = _tensor(name, data[begin:stop], dtype, shape)
    if found.data_bytes != len(data):
        raise _malformed(f"{len(data) - found.data_bytes} bytes follow the last tensor")
    return arrays


def _entry(name: str, entry: Any) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
    match entry:
        case {
            "dtype": str(dtype),
            "shape": list(shape),
            "data_offsets": [int(begin), int(stop)],
        } if not (isinstance(begin, bool) or isinstance(stop, bool)):
            if len(entry) > 3:
                raise _wrong(name, "unknown fields in its header entry")
            if dtype not in _DTYPES:
                message = f"unknown dtype {dtype!r:.40}; known are {', '.join(_DTYPES)}"
                raise _wrong(name, message, Code.INVALID_TENSOR)
            try:
                return _DTYPES[dtype], check_shape(shape, _DTYPES[dtype]), begin, stop
            except TensorError as error:
                raise _wrong(name, str(error), Code.INVALID_TENSOR) from None
        case _:
            raise _wrong(name, "its header entry must hold dtype, shape and two data_offsets")


def _tensor(name: str, raw: memoryview, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    try:
        return from_bytes(raw, dtype, shape)
    except TensorError as error:
        raise _wrong(name, str(error)) from None


def _malformed(detail: str) -> ProblemError:
    return ProblemError(Code.MALFORMED_TENSOR, f"safetensors: {detail}.")


def _wrong(name: str, message: str, code: Code = Code.MALFORMED_TENSOR) -> ProblemError:
    return ProblemError.of_field(name, message, code)


def write(tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> list[Buffer]:
    """A safetensors body as several buffers: the header, then each tensor's bytes.

    Tensors are laid out by falling alignment, as the format asks, and the header is padded,
    so that a reader can view each one in place.
    """
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, array in ordered:
        begin, end = end, end + array.nbytes
        header[name] = {
            "dtype": _NAMES[dtype_name(array)],
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
    text = orjson.dumps(header)
    text += b" " * (-len(text) % LENGTH_BYTES)
    length = len(text).to_bytes(LENGTH_BYTES, "little")
    return [length + text, *(as_bytes(array) for _, array in ordered if array.nbytes)]
