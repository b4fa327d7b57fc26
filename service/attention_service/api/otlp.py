"""Spans by OTLP over HTTP. Needs the extra `otel`, so this is imported only if it is wanted."""

from __future__ import annotations

from importlib.metadata import version

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor


def provider() -> TracerProvider:
    """A provider that sends spans by the batch, as the variables ``OTEL_…`` say.

    Raises:
        ValueError: one of them cannot be used.
    """
    ours = {"service.name": "attention-service", "service.version": version("attention-service")}
    # The environment comes last, for there an operator names the services.
    resource = Resource.create(ours).merge(OTELResourceDetector().detect())
    made = TracerProvider(resource=resource, shutdown_on_exit=False)
    made.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return made
