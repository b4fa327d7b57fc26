"""Call → plan: which kernel runs it, in which dtype, and what it costs.

A kernel is one entry in ``KERNELS``: a condition, a graph and a cost. The first whose
condition holds is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from attention_service.attention.call import AttentionCall
from attention_service.attention.graphs import GraphSpec, MaskKind
from attention_service.attention.values import safe_score

_ITEM_BYTES = {"float32": 4, "float64": 8}


@dataclass(frozen=True, slots=True)
class Plan:
    """How a call is run and what it costs.

    Attributes:
        kernel: name of the kernel.
        graph: what the kernel's ONNX graph is built from.
        flops: floating-point operations of its matrix products and softmax.
        peak_bytes: most memory it takes above the tensors that came in.
    """

    kernel: str
    graph: GraphSpec
    flops: int
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Kernel:
    """One way to compute attention.

    Attributes:
        name: as plans and answers call it.
        takes: whether it can compute this call exactly.
        peak_bytes: most memory it takes for the call, given the bytes of one element.
    """

    name: str
    takes: Callable[[AttentionCall], bool]
    peak_bytes: Callable[[AttentionCall, int], int]


def _composed_peak(call: AttentionCall, item: int) -> int:
    """Scores and weights stand side by side; casts, masks and the answer come on top."""
    sizes = call.sizes
    scores = math.prod(sizes.scores)
    output = math.prod(sizes.output)
    inputs = call.query.size + call.key.size + call.value.size
    masked = call.attn_mask is not None or call.is_causal
    mask = (call.attn_mask.size * item if call.attn_mask is not None else 0) + (
        scores + sizes.q_length * sizes.kv_length if masked else 0
    )
    return item * ((3 if masked else 2) * scores + 2 * output + 2 * inputs) + mask


KERNELS = (
    # Weights are formed anyway here, so this one takes every call. Kernels that form no
    # scores, and tiles, come before it.
    Kernel(name="composed", takes=lambda _: True, peak_bytes=_composed_peak),
)


def plan(call: AttentionCall) -> Plan:
    """Choose the kernel for a call and say what it costs."""
    dtype = compute_dtype(call)
    kernel = next(kernel for kernel in KERNELS if kernel.takes(call))
    sizes = call.sizes
    scores = math.prod(sizes.scores)
    return Plan(
        kernel=kernel.name,
        graph=GraphSpec(
            dtype=dtype,
            mask=_mask_kind(call),
            is_causal=call.is_causal,
            output=call.wants.output,
            weights=bool(call.wants.weights),
        ),
        flops=scores * (2 * sizes.head_size + 5 + 2 * sizes.v_head_size * call.wants.output),
        peak_bytes=kernel.peak_bytes(call, _ITEM_BYTES[dtype]),
    )


def compute_dtype(call: AttentionCall) -> str:
    """The dtype that a call is computed in.

    float64 in itself; all others in float32, or in float64 where their products could
    overflow float32.
    """
    if call.query.dtype == np.float64 or call.score_bound >= safe_score(np.float32):
        return "float64"
    return "float32"


def _mask_kind(call: AttentionCall) -> MaskKind:
    if call.attn_mask is None:
        return "none"
    return "bool" if call.attn_mask.dtype.kind == "b" else "float"
