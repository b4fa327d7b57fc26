"""Operations: how the calls of a compute route become jobs, and their results answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from starlette.requests import Request

from attention_service.api.answers import answer_type
from attention_service.api.forms import Forms
from attention_service.api.request_body import RequestBody, media_type_of
from attention_service.attention.job import Job
from attention_wire import bodies, safetensors
from attention_wire.bodies import JSON, SAFETENSORS, Body
from attention_wire.schemas import AttentionRequest, ModuleRequest, TextRequest
from attention_wire.tensors import TensorForm
from attention_wire.validation import validate

Asked = TypeVar("Asked", AttentionRequest, ModuleRequest, TextRequest)


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

    def places(self, request: Request, body: RequestBody, /) -> Mapping[str, tuple[int, int]]:
        """Where in the body of a call that may have a form the bytes of each tensor stand."""
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
        """As an Operation has it: the header of a safetensors body."""
        if not body.media_type == answer_type(request, body.media_type) == SAFETENSORS:
            return b""
        return safetensors.header(memoryview(body.content))

    def places(self, _: Request, body: RequestBody) -> Mapping[str, tuple[int, int]]:
        """As an Operation has it."""
        header = safetensors.header(memoryview(body.content))
        start = safetensors.LENGTH_BYTES + len(header)
        tensors = safetensors.layout(header).tensors
        return {name: (start + begin, start + end) for name, (*_, begin, end) in tensors.items()}

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
