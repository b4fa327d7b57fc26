"""Bodies: the fields of a request or an answer ⇄ the bytes of one of its wire forms.

Two media types carry the same fields. In JSON, tensors stand among the other fields. In
safetensors, tensors go by name and everything else is JSON text under one metadata key,
``request`` or ``response``; nested results use dotted names (``results.0.weights``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import orjson

from attention_wire import documents, safetensors
from attention_wire.problems import Code, FieldProblem, ProblemError
from attention_wire.tensors import Array, Buffer, TensorFormat, to_json

JSON = "application/json"
SAFETENSORS = "application/x-safetensors"
PROBLEM = "application/problem+json"

Member: TypeAlias = Literal["request", "response"]

# What is sent as lists of many numbers.
_LISTED = frozenset({"query", "key", "value", "past_key", "past_value"})
_INDEX = re.compile("[0-9]{1,9}")


class Fields(NamedTuple):
    """The fields of a body.

    Attributes:
        values: name → parsed JSON value, or array for a tensor that came in binary.
        only_numbers: as :class:`attention_wire.documents.Document` says.
        unread: keys of a request's metadata beside that of the fields.
    """

    values: dict[str, Any]
    only_numbers: bool
    unread: tuple[str, ...] = ()


class Body(NamedTuple):
    """Bytes to send, in several buffers so that no tensor is copied to join them.

    Attributes:
        media_type: of them.
        buffers: in their order.
        headers: of HTTP that they need beside the usual ones, names in lower case.
    """

    media_type: str
    buffers: list[Buffer]
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def __bytes__(self) -> bytes:
        return b"".join(self.buffers)


def read(media_type: str, body: Buffer, member: Member) -> Fields:
    """Read the fields of a body.

    Args:
        media_type: ``JSON`` or ``SAFETENSORS``.
        body: the whole body; binary tensors are views of it.
        member: the metadata key that holds the other fields of a safetensors body.

    Raises:
        ProblemError: the body cannot be read, or is no object of fields.
    """
    if media_type == SAFETENSORS:
        return _read_safetensors(body, member)
    try:
        document = documents.parse(body, tensors=_LISTED)
    except ProblemError:
        if safetensors.is_likely(body):
            message = f"The body looks like safetensors: send it with Content-Type: {SAFETENSORS}."
            raise ProblemError(Code.MALFORMED_JSON, message) from None
        raise
    return Fields(_object(document.value, "The body"), document.only_numbers)


def _read_safetensors(body: Buffer, member: Member) -> Fields:
    tensors, metadata = safetensors.read(body)
    what = f"The text {member!r} of __metadata__"
    document = documents.parse(metadata.pop(member, "{}").encode(), what=what)
    values = _object(document.value, what)
    for name, array in tensors.items():
        _place(values, name, array)
    # An answer's metadata may grow; what a request says and nobody reads may have been meant.
    unread = tuple(metadata) if member == "request" else ()
    return Fields(values, document.only_numbers, unread)


def _object(value: object, what: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise ProblemError(Code.INVALID_FIELD, f"{what} must be a JSON object of fields.")


def _place(values: dict[str, Any], name: str, array: Array) -> None:
    """Put a tensor where its dotted name says."""
    *parents, last = name.split(".")
    target: Any = values
    for part in parents:
        if isinstance(target, list) and _INDEX.fullmatch(part) and int(part) < len(target):
            target = target[int(part)]
        elif isinstance(target, dict):
            target = target.setdefault(part, {})
    if not isinstance(target, dict) or last in target:
        raise ProblemError(
            Code.DUPLICATE_FIELD,
            f"{name}: given as a tensor and in the metadata; give it in one place.",
            [FieldProblem(loc=(name,), msg="given in two places")],
        )
    target[last] = array


def write(
    media_type: str,
    values: Mapping[str, Any],
    member: Member,
    tensor_format: TensorFormat = "list",
) -> Body:
    """Write fields as a body; arrays anywhere in them are its tensors.

    Args:
        media_type: ``JSON`` or ``SAFETENSORS``.
        values: name → JSON value or array, nested as the answer is.
        member: the metadata key for all that is no tensor, in safetensors.
        tensor_format: how JSON carries tensors; safetensors has one way only.
    """
    if media_type == SAFETENSORS:
        tensors: dict[str, Array] = {}
        rest = orjson.dumps(_take_tensors(values, "", tensors)).decode()
        return Body(media_type, safetensors.write(tensors, {member: rest}))
    plain = _with_tensors_as(values, tensor_format)
    return Body(media_type, [orjson.dumps(plain, option=orjson.OPT_SERIALIZE_NUMPY)])


def write_finite(values: Mapping[str, Any]) -> Body:
    """Write fields as JSON, arrays in lists, as :func:`write` does, but look at no number.

    Args:
        values: name → JSON value or row-major array, not empty, of finite numbers.
    """
    return Body(JSON, [orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)])


def _take_tensors(value: Any, path: str, tensors: dict[str, Array]) -> Any:
    """The value without its arrays, which go into ``tensors`` by their dotted names."""
    if isinstance(value, Mapping):
        rest = {}
        for name, item in value.items():
            if isinstance(item, np.ndarray):
                tensors[f"{path}{name}"] = item
            else:
                rest[name] = _take_tensors(item, f"{path}{name}.", tensors)
        return rest
    if _holds_objects(value):
        return [_take_tensors(item, f"{path}{i}.", tensors) for i, item in enumerate(value)]
    return value


def _holds_objects(value: Any) -> bool:
    """Whether it is a list of objects, which may hold tensors: no other list does."""
    return isinstance(value, list) and len(value) > 0 and isinstance(value[0], Mapping)


def _with_tensors_as(value: Any, tensor_format: TensorFormat) -> Any:
    if isinstance(value, np.ndarray):
        return to_json(value, tensor_format)
    if isinstance(value, Mapping):
        return {name: _with_tensors_as(item, tensor_format) for name, item in value.items()}
    if _holds_objects(value):
        return [_with_tensors_as(item, tensor_format) for item in value]
    return value
