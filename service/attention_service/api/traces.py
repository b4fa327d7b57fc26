"""Traces (https://opentelemetry.io): what is recorded of a request, and where it goes.

FastAPI makes the span of a request, from the socket to the last byte of the answer, and takes
W3C's trace context from its headers; `api.phases` makes the spans below it. All of them are
made of names, sizes and times, never of what a request or an answer holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from threading import Thread
from typing import TYPE_CHECKING, Any

from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider as ExportingProvider

# The service's name for its spans' origin (OpenTelemetry's instrumentation scope).
SCOPE = "attention_service"
# What a collector that does not answer may hold up the end of the process.
CLOSE_SECONDS = 3.0


class TracesError(Exception):
    """Traces were asked for and cannot be sent."""


def telemetry(
    provider: trace.TracerProvider | None, is_probe: Callable[[MutableMapping[str, Any]], bool]
) -> TelemetryConfig:
    """What FastAPI is to record: the spans of requests, if there is a provider; nothing else.

    Args:
        provider: makes them.
        is_probe: whether an ASGI scope is of a request that none is made for.
    """
    return {
        "tracing": provider is not None,
        "tracer_provider": provider,
        "exclude": is_probe,
        # Of plain ASGI routes it knows no operations, and what it logs may hold fields.
        "operation_spans": False,
        "metrics": False,
        "logs": False,
        # Ours is made by `exporting`, which refuses what this would only warn of.
        "auto_configure": False,
    }


def exporting() -> ExportingProvider:
    """A provider that sends spans to a collector, in a thread of its own.

    Where it is and how much is sent is told by OpenTelemetry's own variables, ``OTEL_…``,
    which its SDK reads.

    Raises:
        TracesError: the extra is not installed, or a variable cannot be used.
    """
    try:
        # Here, for the service works without it.
        from attention_service.api import otlp  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("opentelemetry"):
            raise
        raise TracesError(
            f"traces need the package {error.name!r}; install the extra, "
            "pip install 'attention-service[server,otel]', or leave ATTENTION_TRACES unset"
        ) from None
    try:
        return otlp.provider()
    except ValueError as error:
        raise TracesError(f"traces cannot be sent as the OTEL_ variables say: {error}") from None


async def close(provider: ExportingProvider) -> None:
    """Send what is left and end, within `CLOSE_SECONDS`."""
    # A daemon, since the SDK's own limits add up to half a minute and cannot be changed.
    closing = Thread(target=provider.shutdown, name="close-traces", daemon=True)
    closing.start()
    await asyncio.to_thread(closing.join, CLOSE_SECONDS)


def name_request(request_id: str, query: bytes) -> None:
    """Note the request's id on its span, and keep the query out of it: no route takes one."""
    span = trace.get_current_span()
    span.set_attribute("attention.request_id", request_id)
    if query:
        span.set_attribute("url.query", "REDACTED")


def trace_of_request() -> dict[str, str]:
    """The id of the trace that the request is part of, for its line in the log."""
    context = trace.get_current_span().get_span_context()
    return {"trace_id": trace.format_trace_id(context.trace_id)} if context.is_valid else {}


def name_problem(code: str) -> None:
    """Note the problem that a request is answered with on its span."""
    trace.get_current_span().set_attribute("attention.problem", str(code))
