"""HTTP requests and answers as values, and what an answer's status and headers say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from pydantic import ValidationError

from attention_client.errors import ApiError, api_error
from attention_wire import bodies
from attention_wire.bodies import Body
from attention_wire.problems import ProblemDetails
from attention_wire.tensors import Buffer

# Of a length that memory is taken for before anything has come: under ten gigabytes.
_MOST_DIGITS = 10


@dataclass(frozen=True)
class Request:
    """One HTTP request, without the service's address.

    Attributes:
        method: the HTTP method.
        path: absolute, escaped, without a prefix.
        accept: the media type that the answer should have.
        body: what to send, if anything.
        template: the path with the names of its parameters, if it has any.
    """

    method: str
    path: str
    accept: str
    body: Body | None = None
    template: str | None = None

    @property
    def route(self) -> str:
        """The path that all calls of this kind share."""
        return self.template or self.path

    @property
    def headers(self) -> dict[str, str]:
        """The headers that belong to this request whoever sends it."""
        headers = {"Accept": self.accept}
        if self.body is not None:
            headers["Content-Type"] = self.body.media_type
            headers["Content-Length"] = str(self.body_bytes)
        return headers

    @property
    def body_bytes(self) -> int:
        """The length of the body."""
        return sum(map(len, self.body.buffers)) if self.body is not None else 0


class Received:
    """The body of an answer as it comes, in one buffer if its length is known.

    Args:
        headers: of the answer.
    """

    def __init__(self, headers: Mapping[str, str]) -> None:
        length = headers.get("content-length", "")
        is_known = length.isdecimal() and "content-encoding" not in headers
        is_sane = len(length) <= _MOST_DIGITS
        self._buffer = bytearray(int(length) if is_known and is_sane else 0)
        self._end = 0

    def add(self, chunk: bytes) -> None:
        """Take what has come."""
        begin, self._end = self._end, self._end + len(chunk)
        self._buffer[begin : self._end] = chunk

    def body(self) -> Buffer:
        """All that has come, read-only as results are."""
        del self._buffer[self._end :]
        return memoryview(self._buffer).toreadonly()


@dataclass(frozen=True)
class Answer:
    """An HTTP answer, whole.

    Attributes:
        status: the HTTP status.
        headers: names in lower case.
        body: decoded of any Content-Encoding.
    """

    status: int
    headers: Mapping[str, str]
    body: Buffer

    @property
    def media_type(self) -> str:
        """The content type without its parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def request_id(self) -> str | None:
        """What the service's logs call this request."""
        return self.headers.get("x-request-id")


def error_of(answer: Answer, now: float) -> ApiError:
    """The error that an answer stands for, whoever wrote it."""
    problem = _problem(answer) or _foreign_problem(answer)
    known = {
        "status": answer.status,  # a proxy may have replaced it
        "request_id": problem.request_id or answer.request_id,
    }
    retry_after = parse_retry_after(answer.headers.get("retry-after"), now)
    return api_error(problem.model_copy(update=known), retry_after)


def _problem(answer: Answer) -> ProblemDetails | None:
    if answer.media_type not in {bodies.PROBLEM, bodies.JSON}:
        return None
    try:
        return ProblemDetails.model_validate_json(bytes(answer.body))
    except ValidationError:
        return None


def _foreign_problem(answer: Answer) -> ProblemDetails:
    """A problem for an answer of something else on the way, such as a proxy."""
    try:
        title = HTTPStatus(answer.status).phrase
    except ValueError:
        title = "Unknown status"
    if answer.status < 400:
        place = answer.headers.get("location", "nowhere")
        detail = f"{title}: redirected to {place}; give the address of the service itself"
    else:
        start = bytes(answer.body[:400]).decode("utf-8", "replace")
        shown = " ".join(start.split())[:200]
        kind = answer.media_type or "no content type"
        detail = f"{title}; the answer ({kind}) is no problem document: {shown!r}"
    return ProblemDetails(
        type="about:blank", title=title, status=answer.status, detail=detail, code="unknown"
    )


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Seconds of a ``Retry-After`` header, a number or a date; None if it says nothing.

    Args:
        value: the header.
        now: the time of day, in seconds since 1970.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - now
        except ValueError:
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def parse_server_timing(value: str) -> dict[str, float]:
    """Phase → milliseconds of a ``Server-Timing`` header; what has no duration is left out."""
    timing = {}
    for entry in value.split(","):
        name, *parameters = (part.strip() for part in entry.split(";"))
        for parameter in parameters:
            key, _, text = parameter.partition("=")
            try:
                milliseconds = float(text.strip().strip('"'))
            except ValueError:
                continue
            if key.strip().lower() == "dur" and name:
                timing[name] = milliseconds
    return timing
