"""One call in a process of its own, and how far resident memory rose above its tensors.

``python -m benchmarks.memory_case GROUP NAME`` prints a JSON object. Baseline: the process
once the inputs exist, sessions of this kind of call have been made by a small one, and what
was freed has been given back. Peak: the kernel's own high-water mark, set back before the
call where that is allowed, and samples beside it.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from attention_service.attention.engine import Engine
from attention_service.attention.sdpa import AttentionJob
from attention_service.resources import cpu_count
from attention_wire.schemas import AttentionRequest
from benchmarks import memory_calls
from benchmarks.memory_calls import Call

_STATUS = Path("/proc/self/status")
_SAMPLE_SECONDS = 0.003


def resident_bytes(field: str = "VmRSS") -> int:
    """Resident memory now (``VmRSS``) or at most (``VmHWM``)."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{_STATUS} has no {field}")


def give_back() -> None:
    """Hand what was freed back to the system, so that it does not hide what is taken next."""
    gc.collect()
    with suppress(AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)


class Peak:
    """Samples resident memory while it is entered; ``bytes`` is the most that was seen."""

    def __init__(self) -> None:
        self.bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Peak:
        try:
            Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to VmRSS
            self._has_mark = True
        except OSError:
            self._has_mark = False
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.bytes = max(self.bytes, resident_bytes())
        if self._has_mark:
            self.bytes = max(self.bytes, resident_bytes("VmHWM"))

    def _sample(self) -> None:
        while not self._ended.wait(_SAMPLE_SECONDS):
            self.bytes = max(self.bytes, resident_bytes())


def run_small(call: Call, engine: Engine) -> None:
    """Make the sessions and load the code that a call needs, by a small one of its kind."""
    fields = call.fields(call.shape.small())
    AttentionJob.of(AttentionRequest.model_validate(fields), engine).run()


def measure(call: Call) -> dict[str, Any]:
    """Growth above the tensors, predicted and seen, and the time of the call."""
    engine = Engine("cpu", cpu_count())
    request = AttentionRequest.model_validate(call.fields(call.shape))
    run_small(call, engine)
    give_back()
    before = resident_bytes()
    with Peak() as peak:
        start = time.perf_counter()
        job = AttentionJob.of(request, engine)
        answer = job.run()
        seconds = time.perf_counter() - start
        del answer
    growth = peak.bytes - before
    give_back()
    left = resident_bytes() - before
    step = job.explain().steps
    return {
        "predicted_mb": round(job.peak_bytes / 1e6, 2),
        "measured_mb": round(growth / 1e6, 2),
        "left_mb": round(left / 1e6, 2),
        "seconds": round(seconds, 3),
        "kernels": [f"{s.kernel} {s.tile_shape} × {s.tiles}" for s in step],
    }


def main() -> None:
    group, name = sys.argv[1:]
    calls: dict[str, Any] = getattr(memory_calls, group)
    found = calls[name]
    print(json.dumps(measure(found[0] if isinstance(found, tuple) else found)))


if __name__ == "__main__":
    main()
