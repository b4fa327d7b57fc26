"""Bodies of the Open Inference Protocol: JSON, with or without binary tensors behind it.

The protocol (https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol)
names tensors as inputs and outputs; its extension for binary data
(https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/protocol/
extension_binary_data.html) puts their bytes behind the JSON, whose length a header tells.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np
import orjson
from pydantic import BaseModel, Field

from attention_wire import documents
from attention_wire.problems import Code, Loc, MalformedTensor, ProblemError, TensorError
from attention_wire.tensors import (
    DTYPES,
    Array,
    Buffer,
    as_bytes,
    check_shape,
    from_bytes,
    from_json,
    to_json,
)

DATATYPES = {
    "BOOL": "bool",
    "FP16": "float16",
    "BF16": "bfloat16",
    "FP32": "float32",
    "FP64": "float64",
    "INT32": "int32",
    "INT64": "int64",
}
TEXT = "BYTES"
_OF_DTYPES = {DTYPES[ours]: theirs for theirs, ours in DATATYPES.items()}
# JSON has no form for them: clients of the protocol send and expect them as bytes.
_BINARY_ONLY = frozenset({"FP16", "BF16"})
_LENGTH_BYTES = 4
# KServe's client names the model here too.
_MEMBERS = ("id", "model_name", "parameters", "inputs", "outputs")
_SIZE = "binary_data_size"


class InferenceError(BaseModel):
    """An error answer, the same for every status."""

    error: str = Field(description="What happened this time, and the cure")


class Part(NamedTuple):
    """An input whose bytes stand behind the JSON.

    Attributes:
        begin: of its bytes in the body.
        end: of its bytes in the body.
    """

    begin: int
    end: int


class Inputs(NamedTuple):
    """What a request holds.

    Attributes:
        id: the caller's own; None for none.
        model: that is meant; None for the one of the path.
        parameters: name → JSON value.
        tensors: name → array; of ``BYTES`` an array of strings.
        parts: of the inputs that came in binary, in the order of their bytes.
        outputs: those that are asked for, name → whether in binary; None for all.
        is_binary: whether outputs are sent in binary where nothing else is said of them.
    """

    id: str | None
    model: str | None
    parameters: Mapping[str, Any]
    tensors: Mapping[str, Array]
    parts: Mapping[str, Part]
    outputs: Mapping[str, bool] | None
    is_binary: bool


def read(body: Buffer, json_bytes: int | None) -> Inputs:
    """Read a request's body.

    Args:
        body: the whole body; tensors in binary are views of it.
        json_bytes: of its JSON, as the header says; None for all of it.

    Raises:
        ProblemError: it cannot be read, or is no such request.
    """
    if json_bytes is not None and json_bytes > len(body):
        raise ProblemError(
            Code.MALFORMED_BODY,
            f"Inference-Header-Content-Length says {json_bytes} bytes of JSON, but the body has "
            f"{len(body)}.",
        )
    end = len(body) if json_bytes is None else json_bytes
    document = documents.parse(memoryview(body)[:end])
    fields = _fields(document.value, _MEMBERS, ())
    parameters = dict(_object(fields.get("parameters", {}), ("parameters",)))
    is_binary = _flag(parameters.pop("binary_data_output", False), "binary_data_output")
    reader = _Reader(memoryview(body), end, only_numbers=document.only_numbers)
    for index, item in enumerate(_list(fields.get("inputs"), ("inputs",))):
        reader.add(item, ("inputs", index))
    reader.finish()
    asked = fields.get("outputs")
    outputs = None if asked is None else dict(_outputs(asked, is_binary))
    for name in ("id", "model_name"):
        if not isinstance(fields.get(name, ""), str):
            raise ProblemError.of_field(name, "must be a string")
    # No outputs named are as many as there are: clients send an empty list for it.
    return Inputs(
        fields.get("id"),
        fields.get("model_name"),
        parameters,
        reader.tensors,
        reader.parts,
        outputs or None,
        is_binary,
    )


class _Reader:
    """Takes the inputs of a request in their order, and their bytes from behind its JSON."""

    def __init__(self, body: memoryview, end: int, *, only_numbers: bool) -> None:
        self.tensors: dict[str, Array] = {}
        self.parts: dict[str, Part] = {}
        self._body = body
        self._end = end
        self._only_numbers = only_numbers

    def add(self, item: object, loc: Loc) -> None:
        """Take the next input."""
        entry = _fields(item, ("name", "shape", "datatype", "parameters", "data"), loc)
        name = entry.get("name")
        if not isinstance(name, str):
            raise ProblemError.of_field((*loc, "name"), "must be a string, the input's name")
        if name in self.tensors:
            raise ProblemError.of_field(
                (*loc, "name"), f"{name!r:.100} is given twice", Code.DUPLICATE_FIELD
            )
        parameters = _object(entry.get("parameters", {}), (*loc, "parameters"))
        unknown = next((known for known in parameters if known != _SIZE), None)
        if unknown is not None:
            raise ProblemError.of_field(
                (*loc, "parameters"),
                f"{unknown!r:.100} is not taken here; tensors come in data, or behind the JSON "
                f"with {_SIZE}",
            )
        size = parameters.get(_SIZE)
        if (size is None) == ("data" not in entry):
            raise ProblemError.of_field(
                (*loc, "data"), f"give data, or the parameter {_SIZE}, and not both"
            )
        try:
            if size is None:
                self.tensors[name] = self._from_json(entry)
            else:
                self.tensors[name] = _from_binary(entry, self._next(name, size))
        except TensorError as error:
            is_malformed = isinstance(error, MalformedTensor)
            code = Code.MALFORMED_TENSOR if is_malformed else Code.INVALID_TENSOR
            raise ProblemError.of_field((*loc, name), str(error), code) from None

    def finish(self) -> None:
        """Look whether all bytes were some input's."""
        if self._end != len(self._body):
            raise ProblemError(
                Code.MALFORMED_BODY,
                f"{len(self._body) - self._end} bytes follow the last input. "
                "Inference-Header-Content-Length says where the JSON ends and tensors begin.",
            )

    def _next(self, name: str, size: object) -> memoryview:
        if type(size) is not int or size < 0:
            raise MalformedTensor(f"{_SIZE} must be a number of bytes; got {size!r:.40}")
        begin, self._end = self._end, self._end + size
        if self._end > len(self._body):
            raise MalformedTensor(
                f"{_SIZE} is {size}, but only {len(self._body) - begin} bytes are left in the body"
            )
        self.parts[name] = Part(begin, self._end)
        return self._body[begin : self._end]

    def _from_json(self, entry: Mapping[str, Any]) -> Array:
        datatype, data = entry.get("datatype"), entry["data"]
        if isinstance(datatype, str) and datatype in _BINARY_ONLY:
            raise TensorError(f"{datatype} has no form in JSON; send it in binary")
        if not isinstance(data, list):
            raise TensorError("data must be a list, flat or nested")
        if datatype == TEXT:
            shape = check_shape(entry.get("shape"), np.dtype(np.int32))
            return _texts(list(_flat(data)), shape)
        dtype = _dtype(datatype)
        tensor = {"dtype": dtype.name, "shape": entry.get("shape"), "data": data}
        return from_json(tensor, only_numbers=self._only_numbers)


def _from_binary(entry: Mapping[str, Any], raw: memoryview) -> Array:
    datatype = entry.get("datatype")
    if datatype == TEXT:
        return _texts(list(_elements(raw)), check_shape(entry.get("shape"), np.dtype(np.int32)))
    dtype = _dtype(datatype)
    return from_bytes(raw, dtype, check_shape(entry.get("shape"), dtype))


def _dtype(datatype: object) -> np.dtype[Any]:
    if isinstance(datatype, str) and datatype in DATATYPES:
        return DTYPES[DATATYPES[datatype]]
    raise TensorError(
        f"datatype {datatype!r:.40} is not taken; known are {', '.join((*DATATYPES, TEXT))}"
    )


def _elements(raw: memoryview) -> Iterator[str]:
    """The strings of a ``BYTES`` tensor: each with its length before it, little-endian."""
    at = 0
    while at < len(raw):
        begin = at + _LENGTH_BYTES
        at = begin + int.from_bytes(raw[at:begin], "little")
        if begin > len(raw) or at > len(raw):
            raise MalformedTensor(f"the length of an element leads past the {len(raw)} bytes")
        yield _text(bytes(raw[begin:at]))


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise MalformedTensor(f"a text is not UTF-8: {error}") from None


def _flat(data: Sequence[Any]) -> Iterator[Any]:
    for item in data:
        if isinstance(item, list):
            yield from _flat(item)
        else:
            yield item


def _texts(texts: list[Any], shape: tuple[int, ...]) -> Array:
    if not all(isinstance(text, str) for text in texts):
        raise TensorError(f"data of {TEXT} must be strings")
    if len(texts) != math.prod(shape):
        raise MalformedTensor(
            f"data holds {len(texts)} elements, but shape {list(shape)} takes {math.prod(shape)}"
        )
    array = np.empty(len(texts), object)
    array[:] = texts
    return array.reshape(shape)


def _outputs(asked: object, is_binary: bool) -> Iterator[tuple[str, bool]]:
    seen = set()
    for index, item in enumerate(_list(asked, ("outputs",))):
        loc: Loc = ("outputs", index)
        entry = _fields(item, ("name", "parameters"), loc)
        name = entry.get("name")
        if not isinstance(name, str):
            raise ProblemError.of_field((*loc, "name"), "must be a string, the output's name")
        if name in seen:
            raise ProblemError.of_field(
                (*loc, "name"), f"{name!r:.100} is asked for twice", Code.DUPLICATE_FIELD
            )
        seen.add(name)
        parameters = _object(entry.get("parameters", {}), (*loc, "parameters"))
        unknown = next((known for known in parameters if known != "binary_data"), None)
        if unknown is not None:
            raise ProblemError.of_field(
                (*loc, "parameters"), f"{unknown!r:.100} is not taken here; binary_data is"
            )
        yield name, _flag(parameters.get("binary_data", is_binary), "binary_data")


def _fields(value: object, names: Sequence[str], loc: Loc) -> Mapping[str, Any]:
    found = _object(value, loc)
    unknown = next((name for name in found if name not in names), None)
    if unknown is not None:
        message = f"unknown field; known are {', '.join(names)}"
        raise ProblemError.of_field((*loc, unknown[:100]), message, Code.UNKNOWN_FIELD)
    # Some clients write null for what they leave out.
    return {name: item for name, item in found.items() if item is not None}


def _object(value: object, loc: Loc) -> Mapping[str, Any]:
    if isinstance(value, dict):
        return value
    raise ProblemError.of_field(loc, "must be an object")


def _list(value: object, loc: Loc) -> Sequence[Any]:
    if isinstance(value, list):
        return value
    raise ProblemError.of_field(loc, "must be a list of objects")


def _flag(value: object, name: str) -> bool:
    if isinstance(value, bool):
        return value
    raise ProblemError.of_field(name, "must be true or false")


# --- Answers ---------------------------------------------------------------------------


def write(about: Mapping[str, Any], outputs: Mapping[str, Array], binary: Set[str]) -> list[Buffer]:
    """An answer as buffers: its JSON, then the bytes of each output that is sent in binary.

    Args:
        about: the fields beside the outputs.
        outputs: name → array, in their order; of strings for ``BYTES``.
        binary: names of those that are sent in binary.

    Raises:
        ProblemError: JSON has no form for a datatype.
    """
    entries, buffers = [], []
    for name, array in outputs.items():
        datatype = datatype_of(array)
        entry: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": datatype}
        if name in binary:
            raw = _packed(array) if datatype == TEXT else as_bytes(array)
            entry["parameters"] = {_SIZE: len(raw)}
            buffers.append(raw)
        elif datatype in _BINARY_ONLY:
            raise ProblemError.of_field(
                ("outputs", name),
                f"is {datatype}, which has no form in JSON; ask for it with binary_data",
                Code.INVALID_TENSOR,
            )
        else:
            flat = array.reshape(-1)
            entry["data"] = flat.tolist() if datatype == TEXT else to_json(flat, "list")
        entries.append(entry)
    text = orjson.dumps({**about, "outputs": entries}, option=orjson.OPT_SERIALIZE_NUMPY)
    return [text, *buffers]


def datatype_of(array: Array) -> str:
    """The protocol's name of an array's datatype."""
    return TEXT if array.dtype == object else _OF_DTYPES[array.dtype]


def _packed(texts: Array) -> bytes:
    raw = (text.encode() for text in texts.reshape(-1).tolist())
    return b"".join(len(one).to_bytes(_LENGTH_BYTES, "little") + one for one in raw)
