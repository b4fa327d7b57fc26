"""What is timed, what it is compared with, and what is asked of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Fields = dict[str, Any]
Side = Literal["kernel", "service", "torch"]

_NO_WEIGHTS: Fields = {"weights": False}
_CAUSAL: Fields = {"is_causal": True}


@dataclass(frozen=True, slots=True)
class Work:
    """One attention call, as both sides are asked for it.

    Attributes:
        length, keys: L and S.
        heads, kv_heads: Hq and Hkv; the batch is 1 and the head size 64.
        wanted: our ``return``.
        options: our other fields.
        torch: how PyTorch computes it: ``sdpa``, ``weights``, or None where it does not.
        torch_options: of its operator.
    """

    length: int
    keys: int
    heads: int = 8
    kv_heads: int = 8
    wanted: Fields = field(default_factory=lambda: _NO_WEIGHTS)
    options: Fields = field(default_factory=dict)
    torch: Literal["sdpa", "weights"] | None = "sdpa"
    torch_options: Fields = field(default_factory=dict)

    def tensors(self) -> dict[str, np.ndarray]:
        """Query, key and value, normally distributed float32, the same for both sides."""
        rng = np.random.default_rng(0)
        sizes = {
            "query": (self.heads, self.length),
            "key": (self.kv_heads, self.keys),
            "value": (self.kv_heads, self.keys),
        }
        return {
            name: rng.standard_normal((1, heads, length, 64), np.float32)
            for name, (heads, length) in sizes.items()
        }


@dataclass(frozen=True, slots=True)
class Case:
    """A ratio of two times, and the most that it may be.

    Attributes:
        work: which work of ours.
        side: of ours: ``kernel``, the computation alone, or ``service``, its whole compute
            phase with checks and casts.
        base: the work that it is divided by.
        base_side: whose time of it.
        limit: the most that the ratio may be; None to show it only.
    """

    work: str
    side: Side
    base: str
    base_side: Side
    limit: float | None

    @property
    def name(self) -> str:
        """As the table and the results call it."""
        base = "PyTorch" if self.base_side == "torch" else self.base
        return f"{self.work} ({self.side}) / {base}"


def _plain(length: int) -> Work:
    return Work(length, length)


def _causal(length: int) -> Work:
    return Work(length, length, options=_CAUSAL, torch_options=_CAUSAL)


def _weights(length: int) -> Work:
    return Work(length, length, wanted={}, torch="weights")


def _own(options: Fields | None = None, **wanted: Any) -> Work:
    return Work(8192, 8192, wanted={**_NO_WEIGHTS, **wanted}, options=options or {}, torch=None)


_LENGTHS = (256, 1024, 4096, 8192)
_GROUPED: Fields = {"enable_gqa": True}
_CHOSEN_ROWS = list(range(0, 8192, 128))

WORKS: dict[str, Work] = {
    **{f"plain {length}": _plain(length) for length in _LENGTHS},
    **{f"causal {length}": _causal(length) for length in _LENGTHS},
    **{f"weights {length}": _weights(length) for length in (1024, 2048, 4096)},
    "GQA 32:8 2048": Work(2048, 2048, heads=32, torch_options=_GROUPED),
    "decode 8:8, 8192 keys": Work(1, 8192),
    "decode 32:8, 8192 keys": Work(1, 8192, heads=32, torch_options=_GROUPED),
    "window of 256, 8192": _own({**_CAUSAL, "left_window_size": 255}),
    "output, LSE, 8192": _own(lse=True),
    "output, entropy, 8192": _own(entropy=True),
    "output, top-8, 8192": _own(weights={"top_k": 8}),
    "output, mean of 64 rows, 8192": _own(weights={"queries": _CHOSEN_ROWS, "reduce": "mean"}),
}

_AT_MOST_TORCH = [
    *(f"plain {length}" for length in _LENGTHS),
    *(f"causal {length}" for length in _LENGTHS if length > 256),
    "GQA 32:8 2048",
    "decode 8:8, 8192 keys",
    "decode 32:8, 8192 keys",
]

CASES: tuple[Case, ...] = (
    *(Case(name, "service", name, "torch", 1.0) for name in _AT_MOST_TORCH),
    Case("causal 256", "kernel", "causal 256", "torch", 1.0),
    Case("causal 256", "service", "causal 256", "torch", 1.3),
    Case("weights 1024", "service", "weights 1024", "torch", 0.4),
    Case("weights 2048", "service", "weights 2048", "torch", 0.3),
    Case("weights 4096", "service", "weights 4096", "torch", 0.3),
    Case("window of 256, 8192", "service", "causal 8192", "service", 0.15),
    Case("output, LSE, 8192", "service", "plain 8192", "service", 1.5),
    Case("output, entropy, 8192", "service", "plain 8192", "service", 2.5),
    Case("output, top-8, 8192", "service", "plain 8192", "service", 3.0),
    Case("output, mean of 64 rows, 8192", "service", "plain 8192", "service", 1.2),
    # What the checks and casts of the service cost beside the kernel.
    *(Case(name, "kernel", name, "torch", None) for name in _AT_MOST_TORCH),
)
