"""`infer`: a call of a model, in JSON or in binary."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import Request

from attention_service.api.forms import Forms
from attention_service.api.inference.models import SDPA, Model
from attention_service.api.layouts import BesideHead, BinaryNumbers, Layout
from attention_service.api.operations import Answered, Prepared
from attention_service.api.request_body import RequestBody
from attention_service.api.scopes import header
from attention_wire import inference
from attention_wire.bodies import JSON, Body
from attention_wire.inference import DATATYPES, TEXT, Inputs
from attention_wire.problems import Code, ProblemError
from attention_wire.tensors import DTYPES, Array

VERSION = "1"
_LENGTH = "Inference-Header-Content-Length"
_BINARY = "application/octet-stream"
_MICROSECONDS = 1e-6
# Of an answer: numbers are hard to compress, and a caller who asks for it waits for it.
_LEVEL = 1


class InferOperation:
    """Calls of `/v2/models/{name}/infer`.

    Args:
        route: the path's template.
        find: gives the model of a name.
        forms: of the calls of plain attention.
    """

    def __init__(self, route: str, find: Callable[[str], Model], forms: Forms) -> None:
        self.route = route
        self.forms = forms
        self._find = find

    def media_type(self, _: Request) -> str:
        """As an Operation has it: whether a body is in binary is told by another header."""
        return JSON

    def start(self, request: Request, /) -> int:
        """As an Operation has it."""
        return _json_bytes(request) or 0

    def form_key(self, request: Request, body: RequestBody) -> bytes:
        """As an Operation has it: the JSON of a call of plain attention with binary tensors."""
        json_bytes = _json_bytes(request)
        path = request.path_params
        is_plain = (path.get("name", SDPA), path.get("version", VERSION)) == (SDPA, VERSION)
        if not json_bytes or not is_plain or _encoding(request) is not None:
            return b""
        key = bytes(memoryview(body.content)[:json_bytes])
        return b"" if b'"id"' in key else key  # the answer repeats it

    def layout(self, request: Request, body: RequestBody, call: Answered, /) -> Layout | None:
        """As an Operation has it."""
        names = tuple(call.prepared.job.answer_shapes)
        if len(call.written.buffers) != 1 + len(names):
            return None  # in lists
        places = inference.read(body.content, _json_bytes(request)).parts
        return Layout(BinaryNumbers.of(places), BesideHead.of(call.written, names))

    def prepare(self, request: Request, body: RequestBody) -> Prepared:
        """As an Operation has it."""
        path = request.path_params
        model = self._find(path.get("name", SDPA))
        check_version(model.name, path.get("version", VERSION))
        json_bytes = _json_bytes(request)
        is_raw = json_bytes == 0
        given = _raw(model, body) if is_raw else inference.read(body.content, json_bytes)
        if given.model not in (None, model.name):
            message = f"is {given.model!r:.100}, where the path says {model.name!r:.100}"
            raise ProblemError.of_field("model_name", message)
        seconds = _seconds(given.parameters)
        rest = {name: value for name, value in given.parameters.items() if name != "timeout"}
        job = model.job(given._replace(parameters=rest))
        _check_outputs(model, given, job.answer_shapes)
        encoding = _encoding(request)
        is_binary = given.is_binary if given.outputs is None else all(given.outputs.values())
        return Prepared(
            job,
            "safetensors" if is_binary else "list",
            lambda answer: _written(model, given, answer, encoding),
            is_copied=not is_binary or encoding is not None,
            seconds=seconds,
        )


def check_version(name: str, version: str) -> None:
    """Refuse a version that a model does not have: it has one.

    Raises:
        ProblemError: ``unknown_module``.
    """
    if version != VERSION:
        message = f"{name!r:.100} has no version {version!r:.40}; it has version {VERSION}."
        raise ProblemError(Code.UNKNOWN_MODULE, message)


def _json_bytes(request: Request) -> int | None:
    given = header(request.scope, _LENGTH.lower().encode())
    if given is None:
        return None
    if not (given.isascii() and given.isdecimal()) or len(given) > 18:
        raise ProblemError(Code.MALFORMED_BODY, f"{_LENGTH} {given!r:.40} is no number of bytes.")
    return int(given)


def _seconds(parameters: Mapping[str, Any]) -> float | None:
    """The seconds of `timeout`, which is in microseconds; 0 is none."""
    given = parameters.get("timeout", 0)
    if type(given) is not int or given < 0:
        message = "must be a number of microseconds, 0 or more"
        raise ProblemError.of_field(("parameters", "timeout"), message)
    return given * _MICROSECONDS or None


def _raw(model: Model, body: RequestBody) -> Inputs:
    """A body that is nothing but the one tensor that a model needs."""
    needed = [tensor for tensor in model.inputs if not tensor.is_optional]
    if len(needed) != 1:
        raise ProblemError(
            Code.MALFORMED_BODY,
            f"{_LENGTH} is 0, so the body is one tensor, but {model.name} needs "
            f"{', '.join(tensor.name for tensor in needed)}. Send JSON before the tensors, and its "
            f"length in {_LENGTH}.",
        )
    (tensor,) = needed
    size = len(body.content)
    if tensor.datatype == TEXT:
        entry: dict[str, Any] = {"shape": [1]}
        raw = size.to_bytes(4, "little") + bytes(body.content)
    else:
        row = DTYPES[DATATYPES[tensor.datatype]].itemsize * tensor.shape[-1]
        entry = {"shape": [1, size // row, tensor.shape[-1]]}
        raw = bytes(body.content)
    entry |= {"name": tensor.name, "datatype": tensor.datatype}
    entry["parameters"] = {"binary_data_size": len(raw)}
    parameters = {"binary_data_output": True}
    text = json.dumps({"inputs": [entry], "parameters": parameters}).encode()
    return inference.read(text + raw, len(text))


def _check_outputs(model: Model, given: Inputs, shapes: Mapping[str, object]) -> None:
    """Refuse the name of an output that this very call does not give."""
    dotted = {tensor.name.split(".")[0] for tensor in model.outputs if "." in tensor.name}
    for name in given.outputs or ():
        if name.split(".")[0] in dotted and name not in shapes:
            message = f"is none of what this call gives: {', '.join(shapes)}; see return.weights"
            raise ProblemError.of_field(("outputs", name), message)


def _encoding(request: Request) -> str | None:
    """The coding of the answer. Only a caller who names one alone wants to wait for it."""
    given = (header(request.scope, b"accept-encoding") or "").strip().lower()
    return given if given in ("gzip", "deflate") else None


def _written(model: Model, given: Inputs, answer: Mapping[str, Any], encoding: str | None) -> Body:
    results: dict[str, Array] = model.results(answer)
    if given.outputs is not None:
        results = {name: array for name, array in results.items() if name in given.outputs}
    binary = {
        name
        for name in results
        if (given.is_binary if given.outputs is None else given.outputs[name])
    }
    parameters = {"provider": answer["provider"]}
    if "plan" in answer:
        parameters["plan"] = json.dumps(answer["plan"])
    about: dict[str, Any] = {"model_name": model.name, "model_version": VERSION}
    if given.id is not None:
        about["id"] = given.id
    buffers = inference.write({**about, "parameters": parameters}, results, binary)
    headers: list[tuple[bytes, bytes]] = []
    if binary:
        headers.append((_LENGTH.lower().encode(), str(len(buffers[0])).encode()))
    if encoding is not None:
        window = zlib.MAX_WBITS | 16 if encoding == "gzip" else zlib.MAX_WBITS
        packer = zlib.compressobj(_LEVEL, wbits=window)
        buffers = [*map(packer.compress, buffers), packer.flush()]
        headers.append((b"content-encoding", encoding.encode()))
    return Body(_BINARY if binary else JSON, buffers, tuple(headers))
