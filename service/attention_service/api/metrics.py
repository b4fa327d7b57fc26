"""Prometheus metrics: of this process, or of all workers together.

docs/metrics.md tells what each of them says. Workers write what they count into files that they
share, and whichever is asked adds up those of all; a gauge of another is a second old at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from time import time
from typing import Literal, NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

from attention_service.attention.engine import Engine
from attention_service.attention.job import Job
from attention_service.modules.folder import ModuleFolder
from attention_service.resources import resident_bytes
from attention_service.serving.admission import Admission
from attention_service.serving.keys import Keys
from attention_service.serving.lifecycle import Lifecycle

CONTENT_TYPE = "text/plain; version=1.0.0; charset=utf-8; escaping=underscores"
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
# Of whole requests, up to the longest that is allowed by default.
_LONG_SECONDS = (*_SECONDS, 60, 120, 240)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_PARTS = (0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1)
_REFRESH_SECONDS = 1.0


class _Watched(NamedTuple):
    gauge: Gauge
    value: Callable[[], float]


@dataclass
class Statistics:
    """What is known of a module's calls.

    Attributes:
        calls: that were answered.
        seconds: that each phase of them took together.
    """

    calls: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


class Metrics:
    """What is counted and timed.

    Args:
        admission: its queue and memory are told.
        engine: its sessions are told.
        folder: how many modules serve and how many were refused is told.
        lifecycle: whether it is ready is told.
        keys: whether their file can be used is told.
        is_shared: whether this is one of several workers; the library was then told of a folder
            by its own variable.
    """

    def __init__(
        self,
        admission: Admission,
        engine: Engine,
        folder: ModuleFolder,
        lifecycle: Lifecycle,
        keys: Keys | None = None,
        *,
        is_shared: bool = False,
    ) -> None:
        # They are a second series for each, which nobody asks for.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._is_shared = is_shared
        self._registry = CollectorRegistry()
        self._requests = self._counter(
            "attention_requests", "Answers of compute routes", "route", "status", "code"
        )
        self._whole = self._histogram(
            "attention_request_seconds",
            "From a request's head to the end of its answer",
            _LONG_SECONDS,
            "route",
            "status_class",
        )
        self._received = self._counter("attention_received_bytes", "Bodies of requests")
        self._sent = self._counter("attention_sent_bytes", "Bodies of answers to compute calls")
        self._phases = self._histogram(
            "attention_phase_seconds", "Time of answered calls", _SECONDS, "module", "phase"
        )
        self._batch_size = self._histogram(
            "attention_batch_size", "Calls and texts computed together", _SIZES, "module"
        )
        self._batch_fill = self._histogram(
            "attention_batch_fill_ratio", "Part of a batch that is no padding", _PARTS, "module"
        )
        self._watched = [
            self._watch("attention_queue_size", "Calls that wait", lambda: admission.waiting),
            self._watch(
                "attention_queue_limit",
                "Calls of one kind that may wait",
                lambda: admission.max_waiting,
            ),
            self._watch("attention_running", "Places that compute", lambda: admission.running),
            self._watch("attention_places", "Places that there are", lambda: admission.places),
            self._watch("attention_sessions", "Sessions cached", lambda: engine.cached_sessions),
            self._watch(
                "attention_memory_predicted_bytes",
                "Memory that large calls hold, as predicted",
                lambda: admission.used_bytes,
            ),
            self._watch(
                "attention_memory_budget_bytes",
                "Memory that large calls may hold",
                lambda: admission.budget_bytes,
            ),
            self._watch("attention_memory_resident_bytes", "Memory in use", resident_bytes),
            self._state("attention_ready", "1 if it takes calls", lambda: lifecycle.is_ready),
            self._state(
                "attention_modules_serving",
                "Modules that serve",
                lambda: len(folder.current.infos()),
            ),
            self._state(
                "attention_modules_refused",
                "Module folders that cannot be used as they are",
                lambda: len(folder.current.refused),
            ),
            self._state(
                "attention_keys_stale",
                "1 if the file of keys cannot be used and those before it are",
                lambda: keys is not None and keys.are_stale,
            ),
        ]
        started = self._gauge(
            "process_start_time_seconds", "When the youngest process began", "livemax"
        )
        started.set(time())
        about = Gauge(
            "attention_info",
            "1; what serves stands in the labels",
            ["version", "provider"],
            registry=self._registry,
            multiprocess_mode="livemax",
        )
        about.labels(version("attention-service"), engine.provider).set(1)
        self._of_module: dict[str, dict[str, Histogram]] = {}
        self._of_answer: dict[tuple[str, int, str], tuple[Counter, Histogram]] = {}

    def count(self, route: str, status: int, code: str, seconds: float) -> None:
        """Count and time one answer of a compute route."""
        answers = self._of_answer.get((route, status, code))
        if answers is None:
            answers = (
                self._requests.labels(route, str(status), code),
                self._whole.labels(route, f"{status // 100}xx"),
            )
            self._of_answer[route, status, code] = answers
        counter, whole = answers
        counter.inc()
        whole.observe(seconds)

    def time(self, module: str, phases: Mapping[str, float]) -> None:
        """Record the seconds of each phase of one call.

        Args:
            module: of those that are loaded, or the name of plain attention.
            phases: name → seconds.
        """
        histograms = self._of_module.get(module)
        if histograms is None:
            histograms = {phase: self._phases.labels(module, phase) for phase in phases}
            self._of_module[module] = histograms
        for phase, seconds in phases.items():
            histograms[phase].observe(seconds)

    def moved(self, received: int, sent: int) -> None:
        """Count the bytes of a call's bodies."""
        self._received.inc(received)
        self._sent.inc(sent)

    def computed(self, jobs: Sequence[Job]) -> None:
        """Record a batch."""
        module, size = jobs[0].module, sum(job.count for job in jobs)
        longest = max(job.batch_bytes / job.count for job in jobs)
        fill = sum(job.score_bytes for job in jobs) / (longest * size) if longest else 1.0
        self._batch_size.labels(module).observe(size)
        self._batch_fill.labels(module).observe(fill)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        self.refresh()
        return generate_latest(self._of_all())

    def statistics(self) -> dict[str, Statistics]:
        """Of each module that has answered calls, by name."""
        found: dict[str, Statistics] = {}
        for metric in self._of_all().collect():
            for sample in metric.samples if metric.name == "attention_phase_seconds" else ():
                seen = found.setdefault(sample.labels["module"], Statistics())
                phase = sample.labels["phase"]
                if sample.name.endswith("_sum"):
                    seen.seconds[phase] = sample.value
                elif sample.name.endswith("_count"):
                    seen.calls = int(sample.value)
        return found

    def _of_all(self) -> CollectorRegistry:
        """What this process counts, or all workers together."""
        if not self._is_shared:
            return self._registry
        of_all = CollectorRegistry()
        MultiProcessCollector(of_all)  # type: ignore[no-untyped-call]
        return of_all

    def refresh(self) -> None:
        """Look at what is not counted but watched."""
        for gauge, value in self._watched:
            gauge.set(value())

    async def keep_fresh(self) -> None:
        """Let the other workers see what is watched here."""
        while self._is_shared:
            self.refresh()
            await asyncio.sleep(_REFRESH_SECONDS)

    def _counter(self, name: str, says: str, *labels: str) -> Counter:
        return Counter(name, says, labels, registry=self._registry)

    def _histogram(
        self, name: str, says: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(name, says, labels, buckets=buckets, registry=self._registry)

    def _gauge(self, name: str, says: str, mode: Literal["livesum", "livemax"]) -> Gauge:
        return Gauge(name, says, registry=self._registry, multiprocess_mode=mode)

    def _watch(self, name: str, says: str, value: Callable[[], float]) -> _Watched:
        """What workers have a share of each."""
        return _Watched(self._gauge(name, says, "livesum"), value)

    def _state(self, name: str, says: str, value: Callable[[], float]) -> _Watched:
        """What is the same in all workers, but for a moment."""
        return _Watched(self._gauge(name, says, "livemax"), value)
