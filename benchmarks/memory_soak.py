"""Two thousand calls of mixed sizes in one process, and its resident memory on the way.

``python -m benchmarks.memory_soak CALLS`` prints a JSON object. Nothing is trimmed between
calls: what is measured is what a service that has run for a while holds.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from attention_service.attention.engine import Engine
from attention_service.attention.sdpa import AttentionJob
from attention_service.heap import give_back_freed
from attention_service.resources import cpu_count
from attention_wire.schemas import AttentionRequest
from attention_wire.tensors import FLOAT_DTYPES
from benchmarks.memory_case import resident_bytes

LONGEST = 4096
EVERY = 200
_WANTED: tuple[dict[str, Any], ...] = (
    {},
    {"weights": False},
    {"weights": False, "lse": True, "entropy": True},
    {"weights": {"top_k": 8}},
    {"weights": {"heads": [0]}},
    {"weights": {"reduce": "mean"}},
)

# As long as the service keeps memory of large answers for the next ones, and a little more.
_KEPT_SECONDS = 2


def calls(count: int) -> Iterator[dict[str, Any]]:
    """Requests whose lengths spread evenly over the orders of magnitude up to the longest."""
    rng = np.random.default_rng(0)
    for number in range(count):
        length, keys = (int(n) for n in LONGEST ** rng.uniform(0.25, 1, 2))
        if number % EVERY == EVERY // 2:
            length = keys = LONGEST  # the longest comes early, and again and again
        kv_heads = int(rng.choice([1, 2, 4, 8]))
        dtype = FLOAT_DTYPES[str(rng.choice(["float32", "float32", "float16", "float64"]))]
        fields: dict[str, Any] = {
            name: rng.standard_normal((1, heads, rows, 64), np.float32).astype(dtype, copy=False)
            for name, heads, rows in (
                ("query", 8, length),
                ("key", kv_heads, keys),
                ("value", kv_heads, keys),
            )
        }
        fields["return"] = _WANTED[rng.integers(len(_WANTED))]
        if rng.random() < 0.4:
            fields["is_causal"] = True
        if rng.random() < 0.2:
            fields["attn_mask"] = rng.random((1, keys)) < 0.9
        if rng.random() < 0.2:
            fields["softcap"] = float(rng.uniform(1, 50))
        yield fields


def main() -> None:
    count = int(sys.argv[1])
    give_back_freed()  # as the service does when it starts
    engine = Engine("cpu", cpu_count())
    resident, peaks = [], []
    start = time.perf_counter()
    for number, fields in enumerate(calls(count), 1):
        job = AttentionJob.of(AttentionRequest.model_validate(fields), engine)
        job.run()
        peaks.append(job.peak_bytes)
        del fields, job
        if number % EVERY == 0:
            time.sleep(_KEPT_SECONDS)
            resident.append(round(resident_bytes() / 1e6, 1))
            print(f"{number} calls: {resident[-1]} MB", file=sys.stderr, flush=True)
    print(
        json.dumps(
            {
                "calls": count,
                "longest": LONGEST,
                "seconds": round(time.perf_counter() - start, 1),
                "largest_predicted_mb": round(max(peaks) / 1e6, 1),
                "resident_mb_every_200": resident,
                "seen": round(resident[-1] / resident[0], 3),
            }
        )
    )


if __name__ == "__main__":
    main()
