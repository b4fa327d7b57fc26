"""The compute routes: body → fields → request → job → place → answer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any, Generic, TypeVar

from opentelemetry.trace import Tracer
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from attention_service.api.answers import BuffersResponse, answer_type, check_limits
from attention_service.api.hang_up import HangUp
from attention_service.api.metrics import Metrics
from attention_service.api.phases import Attributes, Stopwatch
from attention_service.api.problems import STATUS
from attention_service.api.request_body import RequestBody, read_body
from attention_service.attention.job import Job
from attention_service.attention.lanes import Cancelled
from attention_service.serving.admission import Admission
from attention_service.serving.batching import Batching
from attention_service.serving.lifecycle import Lifecycle
from attention_service.serving.lifetime import Lifetime
from attention_service.settings import Settings
from attention_wire import bodies
from attention_wire.problems import Code, ProblemError
from attention_wire.schemas import AttentionRequest, ModuleRequest, TextRequest
from attention_wire.tensors import TensorFormat
from attention_wire.validation import validate

Body = TypeVar("Body", AttentionRequest, ModuleRequest, TextRequest)
# Parsing and writing less than this takes less time than handing it to a thread.
_THREAD_BYTES = 128 * 1024
# What proxies log for it too; no answer has this status, since nobody is there to read it.
CALLER_GONE = 499


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
    """Answers the calls of one operation, as an ASGI app."""

    def __init__(
        self,
        operation: Operation[Any],
        settings: Settings,
        admission: Admission,
        batching: Batching,
        lifecycle: Lifecycle,
        metrics: Metrics,
        tracer: Tracer | None = None,
    ) -> None:
        self._operation = operation
        self._settings = settings
        self._admission = admission
        self._batching = batching
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One call. Its problems are counted here and answered by the app's handlers."""
        route = self._operation.route
        request = Request(scope, receive, send)
        try:
            if self._lifecycle.status == "starting":
                raise ProblemError(Code.NOT_READY, "The modules are being loaded.", retry_after=1)
            lifetime = Lifetime(_timeout(request, self._settings.max_timeout))
            is_sent = await self._answer(request, lifetime, send)
        except ProblemError as problem:
            self._metrics.count(route, STATUS[problem.code], problem.code)
            raise
        except Exception:
            self._metrics.count(route, STATUS[Code.INTERNAL], Code.INTERNAL)
            raise
        if is_sent:
            self._metrics.count(route, HTTPStatus.OK)
        else:
            self._metrics.count(route, CALLER_GONE, "caller_gone")

    async def _answer(self, request: Request, lifetime: Lifetime, send: Send) -> bool:
        """Answer, and say whether somebody took it."""
        task = asyncio.current_task()
        async with AsyncExitStack() as held:
            try:
                response = await self._in_time(request, lifetime, held)
                await response.send_all(send)
            except ConnectionAbortedError:
                return False
            except asyncio.CancelledError:
                if not lifetime.caller_is_gone or task is None or task.uncancel() > 0:
                    raise
                return False
        return True

    async def _in_time(
        self, request: Request, lifetime: Lifetime, held: AsyncExitStack
    ) -> BuffersResponse:
        try:
            async with asyncio.timeout(lifetime.seconds):
                return await self._response(request, lifetime, held)
        except (TimeoutError, Cancelled):
            raise ProblemError(
                Code.DEADLINE,
                f"The call was ended after {lifetime.seconds:g} s. Ask for less, or allow more "
                f"seconds in X-Request-Timeout, up to {self._settings.max_timeout:g}.",
            ) from None

    async def _response(
        self, request: Request, lifetime: Lifetime, held: AsyncExitStack
    ) -> BuffersResponse:
        settings, admission, caller = self._settings, self._admission, _caller(request)
        body = await read_body(
            request,
            settings.max_body_bytes,
            settings.body_timeout,
            partial(admission.check_room, caller),
        )
        media_type = answer_type(request, body.media_type)
        watch = held.enter_context(Stopwatch(self._tracer))
        job, tensor_format = await _aside(
            len(body.content), lambda: self._operation.prepare(body, request.path_params)
        )
        limits = settings.max_answer_bytes, admission.budget_bytes
        check_limits(job, media_type, tensor_format, *limits)
        watch.lap("parse", lambda: {"attention.request_bytes": len(body.content)})
        with HangUp(request.receive, lifetime):
            computed = await held.enter_async_context(
                self._batching.compute(job, caller, lifetime.is_over, partial(_queued, watch, job))
            )
            answer = computed.answer
            watch.lap("compute", lambda: _described(job, answer))
            written = await _aside(
                computed.tensor_bytes,
                lambda: bodies.write(media_type, answer, "response", tensor_format),
            )
        watch.lap("serialize", lambda: {"attention.answer_bytes": sum(map(len, written.buffers))})
        self._metrics.time(job.module, watch.phases)
        self._metrics.moved(len(body.content), sum(map(len, written.buffers)))
        headers = {
            "Server-Timing": watch.header(),
            "X-Attention-Provider": str(answer["provider"]),
        }
        return BuffersResponse(written, headers)


def _timeout(request: Request, most: float) -> float:
    """The seconds that a call may take: as the caller says, and no longer than the service."""
    given = request.headers.get("x-request-timeout")
    if given is None:
        return most
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise ProblemError.of_field(
            "X-Request-Timeout", f"is {given!r:.40}; send a number of seconds above 0"
        )
    return min(seconds, most)


def _caller(request: Request) -> str:
    """Whose call it is: the name of its key, or the address that it comes from."""
    known: str | None = request.scope.get("state", {}).get("caller")
    return known or (request.client.host if request.client else "")


Result = TypeVar("Result")


async def _aside(size: int, work: Callable[[], Result]) -> Result:
    """Do work here, or in a thread where there is enough of it to hold others up."""
    return work() if size < _THREAD_BYTES else await asyncio.to_thread(work)


def _queued(watch: Stopwatch, job: Job, until: float) -> None:
    """A call has waited in the queue until its turn came, by ``perf_counter``."""
    watch.lap(
        "queue",
        lambda: {"attention.small": job.is_small, "attention.peak_bytes": job.peak_bytes},
        at=until,
    )


def _described(job: Job, answer: dict[str, Any]) -> Attributes:
    """What ran, in names: the attributes of a computation's span."""
    named = {"attention.module": answer.get("module"), "attention.provider": answer["provider"]}
    given = {name: value for name, value in named.items() if value is not None}
    return {**given, "attention.kernels": job.kernels}
