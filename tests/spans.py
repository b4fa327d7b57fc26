"""Spans as they were recorded, and the trees that they make."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from typing_extensions import override


class Recorder:
    """A tracer provider whose spans are kept here."""

    def __init__(self) -> None:
        self._kept = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._kept))

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        """Those that have ended."""
        return self._kept.get_finished_spans()

    def clear(self) -> None:
        self._kept.clear()

    def of(self, kind: SpanKind, count: int = 1) -> list[ReadableSpan]:
        """The spans of a kind, waited for: a service ends its own after its answer is there."""
        self._wait(lambda: sum(span.kind is kind for span in self.spans) >= count)
        found = [span for span in self.spans if span.kind is kind]
        assert len(found) == count, [span.name for span in found]
        return found

    def server(self) -> ReadableSpan:
        return self.of(SpanKind.SERVER)[0]

    def client(self) -> ReadableSpan:
        return self.of(SpanKind.CLIENT)[0]

    def wait_for(self, name: str) -> None:
        """Wait until a span of this name has ended."""
        self._wait(lambda: name in names(self.spans))

    def _wait(self, is_there: Callable[[], bool]) -> None:
        end = time.monotonic() + 10
        while not is_there():
            assert time.monotonic() < end, names(self.spans)
            time.sleep(0.002)

    def below(self, parent: ReadableSpan) -> list[ReadableSpan]:
        """The spans below one, by their beginning."""
        below = [span for span in self.spans if span.parent and _id(span.parent) == _id(parent)]
        return sorted(below, key=lambda span: (span.start_time or 0, span.end_time or 0))

    def text(self) -> str:
        """All that leaves the process with these spans."""
        return "".join(span.to_json() for span in self.spans)


class ApplicationProvider(trace.TracerProvider):
    """The global provider, which can be set once only: it passes on to another, or to none."""

    def __init__(self) -> None:
        self._to: trace.TracerProvider = trace.NoOpTracerProvider()

    @override
    def get_tracer(self, *args: Any, **options: Any) -> trace.Tracer:
        return self._to.get_tracer(*args, **options)

    @contextmanager
    def passing_to(self, recorder: Recorder) -> Iterator[None]:
        self._to = recorder.provider
        yield
        self._to = trace.NoOpTracerProvider()


def _id(span: ReadableSpan | trace.SpanContext) -> tuple[int, int]:
    context = span.context if isinstance(span, ReadableSpan) else span
    assert context is not None
    return context.trace_id, context.span_id


def names(spans: Sequence[ReadableSpan]) -> list[str]:
    return [span.name for span in spans]


def is_error(span: ReadableSpan) -> bool:
    return span.status.status_code is StatusCode.ERROR


def attribute(span: ReadableSpan, name: str) -> Any:
    return (span.attributes or {}).get(name)
