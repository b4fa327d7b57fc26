"""Answers: which form they take, how large they may get, and how they are sent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from time import monotonic

from starlette.requests import Request
from starlette.types import Send

from attention_service.api.scopes import header
from attention_service.attention.job import Job, Shapes
from attention_service.serving.lifetime import until
from attention_wire.bodies import JSON, SAFETENSORS, Body
from attention_wire.problems import Code, ProblemError
from attention_wire.tensors import Buffer, TensorForm, json_bound

# Everything in an answer that is no tensor and does not grow with one.
_FRAME_BYTES = 1024
# Numpy counts the other dimensions of an empty array too, and in bytes up to 2**63.
_MOST_ELEMENTS = 2**58


# A body that moves more slowly than this, after so many seconds, is given up.
SLOW_SECONDS = 10.0
SLOW_BYTES = 64 * 1024
_PART_BYTES = 2**20
# To copy so many bytes takes less time than to send them apart.
_JOINED_BYTES = 2**14


class Answer:
    """An answer that is sent as the buffers it stands in: joining them would copy every tensor.

    Args:
        body: what is sent.
        timing: the value of `Server-Timing`.
        provider: which computed it.
    """

    def __init__(self, body: Body, timing: str, provider: str) -> None:
        self._buffers: Sequence[Buffer] = body.buffers
        self._length = sum(map(len, body.buffers))
        self._headers = [
            (b"content-type", body.media_type.encode()),
            (b"content-length", str(self._length).encode()),
            (b"server-timing", timing.encode()),
            (b"x-attention-provider", provider.encode()),
            *body.headers,
        ]

    def _parts(self) -> Sequence[Buffer]:
        """The buffers in pieces: the server waits between two until the first is on its way."""
        if self._length <= _JOINED_BYTES:
            return [b"".join(self._buffers)]
        views = [memoryview(buffer) for buffer in self._buffers]
        return [
            view[begin : begin + _PART_BYTES]
            for view in views
            for begin in range(0, len(view), _PART_BYTES)
        ]

    async def send_all(self, send: Send) -> None:
        """Send it.

        Raises:
            ConnectionAbortedError: the caller takes it too slowly; what it holds is wanted back.
        """
        seconds = SLOW_SECONDS + self._length / SLOW_BYTES
        try:
            await until(monotonic() + seconds, self._send(send))
        except TimeoutError:
            raise ConnectionAbortedError from None

    async def _send(self, send: Send) -> None:
        parts = self._parts()
        await send({"type": "http.response.start", "status": 200, "headers": self._headers})
        for index, part in enumerate(parts, 1):
            more = index < len(parts)
            await send({"type": "http.response.body", "body": part, "more_body": more})


def answer_type(request: Request, request_type: str) -> str:
    """The media type of the answer: the request's, unless `Accept` prefers the other."""
    accepted = header(request.scope, b"accept")
    if accepted is None:
        return request_type
    best, best_quality = request_type, 0.0
    for item in accepted.split(","):
        media_type, *parameters = (part.strip().lower() for part in item.split(";"))
        quality = _quality(parameters)
        is_better = quality > best_quality or (quality == best_quality and best != request_type)
        if media_type in (JSON, SAFETENSORS) and quality > 0 and is_better:
            best, best_quality = media_type, quality
        elif media_type in ("*/*", "application/*") and quality > best_quality:
            best, best_quality = request_type, quality
    return best


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


def check_limits(
    job: Job,
    form: TensorForm,
    max_answer_bytes: int,
    memory_budget_bytes: int,
) -> None:
    """Refuse a job whose answer or memory would be over its limit, before it runs.

    Raises:
        ProblemError: ``answer_too_large`` or ``memory_too_large``, with the size, the limit
            and what to ask for instead.
    """

    def fits(shapes: Shapes, peak_bytes: int) -> bool:
        answer = _FRAME_BYTES + json_bound(shapes, form)
        return answer <= max_answer_bytes and peak_bytes <= memory_budget_bytes

    for name, (shape, _) in job.answer_shapes.items():
        if math.prod(size or 1 for size in shape) > _MOST_ELEMENTS:
            raise ProblemError(
                Code.ANSWER_TOO_LARGE,
                f"{name} would be empty, but of a shape too large for an array: {list(shape)}. "
                "Send shorter sequences.",
            )
    answer = _FRAME_BYTES + json_bound(job.answer_shapes, form)
    if answer > max_answer_bytes:
        raise ProblemError(
            Code.ANSWER_TOO_LARGE,
            f"The answer could take {answer} bytes as {form}; at most {max_answer_bytes} are "
            f"sent. {job.smaller(fits)}"
            + ("" if form == "safetensors" else f" {SAFETENSORS} takes the fewest bytes."),
        )
    if job.peak_bytes > memory_budget_bytes:
        raise ProblemError(
            Code.MEMORY_TOO_LARGE,
            f"The call needs up to {job.peak_bytes} bytes of memory; at most "
            f"{memory_budget_bytes} may be taken. {job.smaller(fits)}",
        )
