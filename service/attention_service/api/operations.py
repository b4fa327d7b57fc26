"""Operations: how the calls of a compute route become jobs, and their results answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from starlette.requests import Request

from attention_service.api.answers import answer_type
from attention_service.api.forms import Forms
from attention_service.api.layouts import (
    AmongFields,
    BesideHead,
    BinaryNumbers,
    Layout,
    ListedNumbers,
)
from attention_service.api.request_body import RequestBody, media_type_of
from attention_service.attention.job import Job
from attention_wire import bodies, number_lists, safetensors
from attention_wire.bodies import JSON, SAFETENSORS, Body
from attention_wire.schemas import AttentionRequest, ModuleRequest, TextRequest
from attention_wire.tensors import TensorForm
from attention_wire.validation import validate

Asked = TypeVar("Asked", AttentionRequest, ModuleRequest, TextRequest)


# A longer JSON body has no form: to take its numbers out costs what a form saves.
_LONGEST_LISTS = 64 * 1024
# Numbers of an answer that are written as text on the event loop.
_MOST_LISTED = 2**14
_INPUTS = ("query", "key", "value")
_NAMES = tuple(name.encode() for name in _INPUTS)


class Prepared(NamedTuple):
    """A call that was read.

    Attributes:
        job: what is to be computed.
        form: that the answer's tensors take.
        write: writes the job's results as the answer.
        is_copied: whether that takes a pass over every number.
        seconds: that the caller gives it, if the body says so.
    """

    job: Job
    form: TensorForm
    write: Callable[[Mapping[str, Any]], Body]
    is_copied: bool
    seconds: float | None = None


class Answered(NamedTuple):
    """A call that was answered.

    Attributes:
        prepared: what was read.
        answer: the job's results.
        written: they, as the answer.
    """

    prepared: Prepared
    answer: Mapping[str, Any]
    written: Body


class Operation(Protocol):
    """What tells one compute route from another."""

    @property
    def route(self) -> str:
        """The path's template, as metrics name it."""
        ...

    @property
    def forms(self) -> Forms | None:
        """Of its calls, if they can have any."""
        ...

    def media_type(self, request: Request) -> str:
        """The form of a request's body.

        Raises:
            ProblemError: ``unsupported_media_type``.
        """
        ...

    def start(self, request: Request, /) -> int:
        """Where in a body tensors begin, as far as its head tells; 0 if it does not.

        Raises:
            ProblemError: the head tells it in no way.
        """
        ...

    def form_key(self, request: Request, body: RequestBody) -> bytes:
        """All but the numbers of a call that may have a form; empty for another."""
        ...

    def layout(self, request: Request, body: RequestBody, call: Answered, /) -> Layout | None:
        """The layout of a call that may have a form, if its body and answer have one."""
        ...

    def prepare(self, request: Request, body: RequestBody) -> Prepared:
        """Parse and validate a body.

        Raises:
            ProblemError: something is wrong with it.
        """
        ...


@dataclass(frozen=True)
class FieldsOperation(Generic[Asked]):
    """A call whose body holds the fields of a request, and whose answer those of an answer.

    Attributes:
        route: the path's template.
        model: the request.
        job: makes a job of a request and the path's parameters.
        forms: of its calls, if they can have any.
    """

    route: str
    model: type[Asked]
    job: Callable[[Asked, Mapping[str, str]], Job]
    forms: Forms | None = None

    def media_type(self, request: Request) -> str:
        """As an Operation has it."""
        return media_type_of(request)

    def start(self, _: Request, /) -> int:
        """As an Operation has it: the header of a safetensors body is in the body."""
        return 0

    def form_key(self, request: Request, body: RequestBody) -> bytes:
        """As an Operation has it: the header of a safetensors body, the outline of a JSON one."""
        if answer_type(request, body.media_type) != body.media_type:
            return b""
        if body.media_type == SAFETENSORS:
            return safetensors.header(memoryview(body.content))
        if len(body.content) > _LONGEST_LISTS:
            return b""
        outline = number_lists.outline(bytes(body.content), _NAMES)
        # No header begins with it, so none is taken for an outline.
        return b"lists " + outline if outline else b""

    def layout(self, _: Request, body: RequestBody, call: Answered) -> Layout | None:
        """As an Operation has it."""
        shapes = call.prepared.job.answer_shapes
        if body.media_type == SAFETENSORS:
            return Layout(
                BinaryNumbers.of(safetensors.places(memoryview(body.content))),
                BesideHead.of(call.written, tuple(shapes)),
            )
        counts = [math.prod(shape) for shape, _ in shapes.values()]
        if 0 in counts or sum(counts) > _MOST_LISTED:
            return None
        values = bodies.read(JSON, body.content, "request").values
        given = {name: values[name] for name in _INPUTS}
        if not all(isinstance(array, np.ndarray) for array in given.values()):
            return None  # base64, or words among the numbers
        # Of such a call every result is finite, or its numbers would be doubtful.
        is_listed = call.prepared.form == "list"
        return Layout(
            ListedNumbers.of({name: array.shape for name, array in given.items()}),
            AmongFields.of(bodies.write_finite if is_listed else call.prepared.write, call.answer),
        )

    def prepare(self, request: Request, body: RequestBody) -> Prepared:
        """As an Operation has it."""
        asked = validate(self.model, bodies.read(body.media_type, body.content, "request"))
        tensor_format, media_type = asked.tensor_format, answer_type(request, body.media_type)
        return Prepared(
            self.job(asked, request.path_params),
            "safetensors" if media_type == SAFETENSORS else tensor_format,
            lambda answer: bodies.write(media_type, answer, "response", tensor_format),
            is_copied=media_type == JSON,
        )
