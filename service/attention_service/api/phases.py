"""The phases of a compute call: how long each took, and its span."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter, time_ns
from types import TracebackType
from typing import Self, TypeAlias

from opentelemetry import trace
from opentelemetry.trace import Span, StatusCode, Tracer
from opentelemetry.util.types import AttributeValue

from attention_wire.problems import ProblemError

PHASES = ("parse", "queue", "compute", "serialize")
"""In their order. Before them the body is read, after them the answer is sent."""

_HEADER = ", ".join(f"{phase};dur=%.3f" for phase in PHASES)

Attributes: TypeAlias = Mapping[str, AttributeValue]


class Stopwatch:
    """Times of the phases of one call, for `Server-Timing`, the metrics and the trace.

    While it is entered, a call may fail: the phase that it fails in has a span too.

    Args:
        tracer: makes a span of each phase below the current one; None for no spans.
    """

    def __init__(self, tracer: Tracer | None = None) -> None:
        self.phases: dict[str, float] = {}
        self._tracer = tracer
        self._parent = (
            None if tracer is None else trace.set_span_in_context(trace.get_current_span())
        )
        self._last = perf_counter()

    def lap(
        self,
        phase: str,
        attributes: Callable[[], Attributes] | None = None,
        *,
        at: float | None = None,
    ) -> None:
        """End a phase; the next one begins.

        Args:
            phase: the next of `PHASES`.
            attributes: makes those of its span; called only where there is one.
            at: when that was, by ``perf_counter``; now by default.
        """
        begin, self._last = self._last, perf_counter() if at is None else at
        self.phases[phase] = self._last - begin
        if self._tracer is not None:
            with self._span(self._tracer, phase, begin, self._last) as span:
                if attributes is not None and span.is_recording():
                    span.set_attributes(attributes())

    def header(self) -> str:
        """The value of `Server-Timing` (https://www.w3.org/TR/server-timing/), in ms."""
        return _HEADER % tuple(1e3 * seconds for seconds in self.phases.values())

    def milliseconds(self) -> dict[str, float]:
        """The phases that ended, as fields of a line of the log."""
        return {f"{phase}_ms": round(1e3 * seconds, 3) for phase, seconds in self.phases.items()}

    def __enter__(self) -> Self:
        """Begin to look for a failure."""
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Make a span of the phase that did not end."""
        if self._tracer is None or len(self.phases) == len(PHASES):
            return
        phase = PHASES[len(self.phases)]
        with self._span(self._tracer, phase, self._last, perf_counter()) as span:
            span.set_attribute("error.type", _name(error))
            span.set_status(StatusCode.ERROR)

    @contextmanager
    def _span(self, tracer: Tracer, phase: str, begin: float, end: float) -> Iterator[Span]:
        """A span of a time that is over, by ``perf_counter``."""
        epoch = time_ns() - int(perf_counter() * 1e9)
        span = tracer.start_span(phase, self._parent, start_time=epoch + int(begin * 1e9))
        yield span
        span.end(epoch + int(end * 1e9))


def _name(error: BaseException | None) -> str:
    """What went wrong, in a word. A call that ends without an error has lost its caller."""
    if error is None:
        return "caller_gone"
    return str(error.code) if isinstance(error, ProblemError) else type(error).__qualname__
