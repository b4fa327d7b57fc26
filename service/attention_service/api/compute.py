"""The compute routes: body → fields → request → job → place → answer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from functools import partial
from http import HTTPStatus
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

from opentelemetry.trace import Tracer
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from attention_service.api.answers import Answer, check_limits
from attention_service.api.forms import Form
from attention_service.api.hang_up import HangUp
from attention_service.api.inference.models import SDPA
from attention_service.api.metrics import Metrics
from attention_service.api.operations import Answered, Operation
from attention_service.api.phases import Attributes, Stopwatch
from attention_service.api.problems import STATUS, problem_response
from attention_service.api.request_body import RequestBody, read_body
from attention_service.api.scopes import header
from attention_service.attention.job import Job
from attention_service.attention.lanes import Cancelled
from attention_service.attention.values import Doubtful
from attention_service.serving.admission import Admission
from attention_service.serving.batching import Batching
from attention_service.serving.lifecycle import Lifecycle
from attention_service.serving.lifetime import Lifetime
from attention_service.settings import Settings
from attention_wire.bodies import Body
from attention_wire.problems import Code, ProblemError
from attention_wire.schemas import AttentionRequest, ModuleRequest, TextRequest

Asked = TypeVar("Asked", AttentionRequest, ModuleRequest, TextRequest)
# Parsing and writing less than this takes less time than handing it to a thread.
_THREAD_BYTES = 128 * 1024
# What proxies log for it too; no answer has this status, since nobody is there to read it.
CALLER_GONE, GONE = 499, "caller_gone"


class ComputeEndpoint:
    """Answers the calls of one operation, as an ASGI app."""

    def __init__(
        self,
        operation: Operation,
        settings: Settings,
        admission: Admission,
        batching: Batching,
        lifecycle: Lifecycle,
        metrics: Metrics,
        tracer: Tracer | None = None,
    ) -> None:
        self._operation = operation
        self._route = operation.route
        self._settings = settings
        self._admission = admission
        self._batching = batching
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One call. Its problems are counted and answered here."""
        request, started = Request(scope, receive, send), perf_counter()
        try:
            if self._lifecycle.status == "starting":
                raise ProblemError(Code.NOT_READY, "The modules are being loaded.", retry_after=1)
            lifetime = Lifetime(_timeout(request, self._settings.max_timeout))
            is_sent = await self._answer(request, lifetime, send)
        except ProblemError as problem:
            self._count(STATUS[problem.code], problem.code, started)
            await problem_response(problem, request)(scope, receive, send)
        except Exception:
            self._count(STATUS[Code.INTERNAL], Code.INTERNAL, started)
            raise
        else:
            if is_sent:
                self._count(HTTPStatus.OK, "", started)
            else:
                scope["state"]["code"] = GONE
                self._count(CALLER_GONE, GONE, started)

    def _count(self, status: int, code: str, started: float) -> None:
        self._metrics.count(self._route, status, code, perf_counter() - started)

    async def _answer(self, request: Request, lifetime: Lifetime, send: Send) -> bool:
        """Answer, and say whether somebody took it."""
        settings, caller = self._settings, _caller(request)
        try:
            body = await read_body(
                request,
                self._operation.media_type(request),
                self._operation.start(request),
                settings.max_body_bytes,
                settings.body_timeout,
                lifetime.seconds,
                partial(self._admission.check_room, caller),
            )
            with Stopwatch(self._tracer) as watch:
                request.scope["state"].update(watch=watch, request_bytes=len(body.content))
                call = _Call(request, body, lifetime, caller, watch)
                forms = self._operation.forms
                key = b"" if forms is None else self._operation.form_key(request, body)
                form = forms.find(key) if forms is not None and key else None
                if form is not None:
                    with suppress(Doubtful):
                        return await self._by_form(form, call, send)
                return await self._in_turn(call, partial(self._computed, form_key=key), send)
        except ConnectionAbortedError:
            return False
        except TimeoutError:
            raise self._late(lifetime) from None

    def _late(self, lifetime: Lifetime) -> ProblemError:
        return ProblemError(
            Code.DEADLINE,
            f"The call was ended after {lifetime.seconds:g} s. Ask for less, or allow more "
            f"seconds in X-Request-Timeout, up to {self._settings.max_timeout:g}.",
        )

    async def _by_form(self, form: Form, call: _Call, send: Send) -> bool:
        """Answer a call of a known form, and say whether somebody took it.

        Raises:
            Doubtful: it has to take the whole way.
        """
        if not form.compiled.is_instant:
            return await self._in_turn(call, partial(self._in_place, form=form), send)
        self._parsed(call, SDPA)
        _dequeued(call.watch, form)
        written = form.answer(call.body.content)
        await self._of_form(form, written, call).send_all(send)
        return True

    async def _in_place(self, call: _Call, _: AsyncExitStack, form: Form) -> Answer:
        """The answer to a call of a known form, computed in a thread."""
        self._parsed(call, SDPA)
        with HangUp(call.request.receive, call.lifetime):
            # Small calls take nothing out of the budget, so the answer needs no place.
            async with self._admission.place(0, call.caller, is_small=True):
                _dequeued(call.watch, form)
                written = await self._admission.run(partial(form.answer, call.body.content))
        return self._of_form(form, written, call)

    def _of_form(self, form: Form, written: Body, call: _Call) -> Answer:
        """What was computed by a form, as it is sent."""
        call.watch.lap(
            "compute",
            lambda: {"attention.provider": form.provider, "attention.kernels": form.kernels},
        )
        return self._finished(written, SDPA, form.provider, call)

    async def _in_turn(
        self, call: _Call, work: Callable[[_Call, AsyncExitStack], Awaitable[Answer]], send: Send
    ) -> bool:
        """Answer a call by work that waits for its turn, and say whether somebody took it."""
        lifetime, task = call.lifetime, asyncio.current_task()
        try:
            async with AsyncExitStack() as held:
                async with asyncio.timeout(lifetime.left):
                    answer = await work(call, held)
                await answer.send_all(send)
        except (TimeoutError, Cancelled):
            raise self._late(lifetime) from None
        except asyncio.CancelledError:
            if not lifetime.caller_is_gone or task is None or task.uncancel() > 0:
                raise
            return False
        return True

    async def _computed(self, call: _Call, held: AsyncExitStack, form_key: bytes) -> Answer:
        """The answer to any call."""
        request, body, lifetime, operation = call.request, call.body, call.lifetime, self._operation
        prepared = await _aside(len(body.content), lambda: operation.prepare(request, body))
        job = prepared.job
        check_limits(
            job, prepared.form, self._settings.max_answer_bytes, self._admission.budget_bytes
        )
        self._parsed(call, job.module)
        lifetime.shorten(prepared.seconds)
        async with asyncio.timeout(lifetime.left):
            with HangUp(request.receive, lifetime):
                computed = await held.enter_async_context(
                    self._batching.compute(
                        job, call.caller, lifetime.is_over, partial(_queued, call.watch, job)
                    )
                )
                answer = computed.answer
                call.watch.lap("compute", lambda: _described(job, answer))
                written = await _aside(
                    computed.tensor_bytes if prepared.is_copied else 0,
                    lambda: prepared.write(answer),
                )
        if operation.forms is not None and form_key:
            answered = Answered(prepared, answer, written)
            operation.forms.learn(form_key, job, partial(operation.layout, request, body, answered))
        return self._finished(written, job.module, str(answer["provider"]), call)

    def _parsed(self, call: _Call, module: str) -> None:
        call.request.scope["state"]["attention_module"] = module
        call.watch.lap("parse", lambda: {"attention.request_bytes": len(call.body.content)})

    def _finished(self, written: Body, module: str, provider: str, call: _Call) -> Answer:
        """The answer as it is sent, once it is counted."""
        size, watch = sum(map(len, written.buffers)), call.watch
        call.request.scope["state"]["answer_bytes"] = size
        watch.lap("serialize", lambda: {"attention.answer_bytes": size})
        self._metrics.time(module, watch.phases)
        self._metrics.moved(len(call.body.content), size)
        return Answer(written, watch.header(), provider)


class _Call(NamedTuple):
    """A call whose body was read.

    Attributes:
        request: it.
        body: of it.
        lifetime: of it.
        caller: whose it is.
        watch: times its phases.
    """

    request: Request
    body: RequestBody
    lifetime: Lifetime
    caller: str
    watch: Stopwatch


def _timeout(request: Request, most: float) -> float:
    """The seconds that a call may take: as the caller says, and no longer than the service."""
    given = header(request.scope, b"x-request-timeout")
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


def _dequeued(watch: Stopwatch, form: Form) -> None:
    """The turn of a call of a known form has come: now."""
    watch.lap("queue", lambda: {"attention.small": True, "attention.peak_bytes": form.peak_bytes})


def _described(job: Job, answer: dict[str, Any]) -> Attributes:
    """What ran, in names: the attributes of a computation's span."""
    named = {"attention.module": answer.get("module"), "attention.provider": answer["provider"]}
    given = {name: value for name, value in named.items() if value is not None}
    return {**given, "attention.kernels": job.kernels}
