"""Prometheus metrics, one registry for each app."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from attention_service.serving.admission import Admission

CONTENT_TYPE = "text/plain; version=1.0.0; charset=utf-8; escaping=underscores"
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """What is counted and timed."""

    def __init__(self, admission: Admission) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "attention_requests",
            "Answers, by route, status and problem code (empty where there was none)",
            ["route", "status", "code"],
            registry=self.registry,
        )
        self._phases = Histogram(
            "attention_phase_seconds",
            "Time of answered calls, by route and phase",
            ["route", "phase"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        waiting = Gauge("attention_queue_size", "Calls that wait", registry=self.registry)
        waiting.set_function(lambda: admission.waiting)
        running = Gauge("attention_running", "Calls that compute", registry=self.registry)
        running.set_function(lambda: admission.running)

    def count(self, route: str, status: int, code: str = "") -> None:
        """Count one answer of a compute route."""
        self._requests.labels(route, str(status), code).inc()

    def time(self, route: str, phases: Mapping[str, float]) -> None:
        """Record the seconds of each phase of one call."""
        for phase, seconds in phases.items():
            self._phases.labels(route, phase).observe(seconds)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
