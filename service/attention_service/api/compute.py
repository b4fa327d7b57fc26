"""The compute routes: body → fields → request → job → place → answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Generic, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from attention_service.api.answers import BuffersResponse, answer_type, check_limits
from attention_service.api.metrics import Metrics
from attention_service.api.problems import STATUS
from attention_service.api.request_body import RequestBody, read_body
from attention_service.attention.job import Job
from attention_service.serving.admission import Admission
from attention_service.serving.lifecycle import Lifecycle
from attention_service.settings import Settings
from attention_wire import bodies
from attention_wire.problems import Code, ProblemError
from attention_wire.schemas import AttentionRequest, ModuleRequest, TextRequest
from attention_wire.tensors import TensorFormat
from attention_wire.validation import validate

Body = TypeVar("Body", AttentionRequest, ModuleRequest, TextRequest)
# Parsing and writing less than this takes less time than handing it to a thread.
_THREAD_BYTES = 128 * 1024


class Stopwatch:
    """Times of the phases of one call, for `Server-Timing` and the metrics."""

    def __init__(self) -> None:
        self.phases: dict[str, float] = {}
        self._last = perf_counter()

    def lap(self, phase: str) -> None:
        """End a phase; the next one begins."""
        now = perf_counter()
        self.phases[phase] = now - self._last
        self._last = now

    def header(self) -> str:
        """The value of `Server-Timing` (https://www.w3.org/TR/server-timing/), in ms."""
        return ", ".join(f"{name};dur={s * 1e3:.3f}" for name, s in self.phases.items())


@dataclass(frozen=True)
class Operation(Generic[Body]):
    """What tells one compute route from another.

    Attributes:
        route: the path's template, as metrics name it.
        model: the request.
        job: makes a job of a request and the path's parameters.
    """

    route: str
    model: type[Body]
    job: Callable[[Body, dict[str, str]], Job]

    def prepare(self, body: RequestBody, path: dict[str, str]) -> tuple[Job, TensorFormat]:
        """Parse and validate a body."""
        fields = bodies.read(body.media_type, body.content, "request")
        request = validate(self.model, fields)
        return self.job(request, path), request.tensor_format


class ComputeEndpoint:
    """Answers the calls of one operation."""

    def __init__(
        self,
        operation: Operation[Any],
        settings: Settings,
        admission: Admission,
        lifecycle: Lifecycle,
        metrics: Metrics,
    ) -> None:
        self._operation = operation
        self._settings = settings
        self._admission = admission
        self._lifecycle = lifecycle
        self._metrics = metrics

    async def __call__(self, request: Request) -> Response:
        """One call. Its problems are counted here and answered by the app's handlers."""
        route = self._operation.route
        try:
            if self._lifecycle.status == "starting":
                raise ProblemError(Code.NOT_READY, "The modules are being loaded.", retry_after=1)
            response = await self._answer(request)
        except ProblemError as problem:
            self._metrics.count(route, STATUS[problem.code], problem.code)
            raise
        except Exception:
            self._metrics.count(route, STATUS[Code.INTERNAL], Code.INTERNAL)
            raise
        self._metrics.count(route, response.status_code)
        return response

    async def _answer(self, request: Request) -> Response:
        body = await read_body(request, self._settings.max_body_bytes)
        media_type = answer_type(request, body.media_type)
        watch = Stopwatch()
        job, tensor_format = await _aside(
            len(body.content), lambda: self._operation.prepare(body, request.path_params)
        )
        check_limits(
            job,
            media_type,
            tensor_format,
            self._settings.max_answer_bytes,
            self._admission.budget_bytes,
        )
        watch.lap("parse")
        async with self._admission.place(job.peak_bytes):
            watch.lap("queue")
            answer = await self._admission.run(job.run)
            watch.lap("compute")
        size = _tensor_bytes(answer)
        written = await _aside(
            size, lambda: bodies.write(media_type, answer, "response", tensor_format)
        )
        watch.lap("serialize")
        self._metrics.time(self._operation.route, watch.phases)
        headers = {
            "Server-Timing": watch.header(),
            "X-Attention-Provider": str(answer["provider"]),
        }
        return BuffersResponse(written, headers)


Result = TypeVar("Result")


async def _aside(size: int, work: Callable[[], Result]) -> Result:
    """Do work here, or in a thread where there is enough of it to hold others up."""
    return work() if size < _THREAD_BYTES else await asyncio.to_thread(work)


def _tensor_bytes(answer: dict[str, Any]) -> int:
    results = answer.get("results", [answer])
    return sum(getattr(item, "nbytes", 0) for result in results for item in result.values())
