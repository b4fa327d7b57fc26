"""Attention in float64 numpy, written for the tests from the formula alone.

softmax(scale·QKᵀ + mask)·V, head by head and row by row, with none of the service's code.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Expected(NamedTuple):
    """What a call must give, and the largest score, which its rounding grows with."""

    output: Array
    weights: Array
    largest_score: float


def attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    attn_mask: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> Expected:
    """Rank-4 attention: ``[B,Hq,L,D]``, ``[B,Hkv,S,D]``, ``[B,Hkv,S,Dv]``."""
    q, k, v = (tensor.astype(np.float64) for tensor in (query, key, value))
    batch, q_heads, q_length, head_size = q.shape
    kv_heads, kv_length = k.shape[1], k.shape[2]
    factor = 1 / math.sqrt(head_size) if scale is None else scale
    full = (batch, q_heads, q_length, kv_length)
    bias = np.zeros(full)
    if attn_mask is not None:
        shorter = kv_length - attn_mask.shape[-1]
        pad = [(0, 0)] * (attn_mask.ndim - 1) + [(0, shorter)]
        if attn_mask.dtype == bool:
            seen = np.pad(attn_mask, pad, constant_values=False)
            bias[~np.broadcast_to(seen, full)] = -np.inf
        else:
            padded = np.pad(attn_mask.astype(np.float64), pad, constant_values=-np.inf)
            bias += np.broadcast_to(padded, full)
    if is_causal:
        for row in range(q_length):
            bias[:, :, row, row + 1 :] = -np.inf
    weights = np.zeros(full)
    output = np.zeros((batch, q_heads, q_length, v.shape[-1]))
    largest = 0.0
    for b in range(batch):
        for h in range(q_heads):
            group = h // (q_heads // kv_heads)
            scores = factor * (q[b, h] @ k[b, group].T)
            largest = max(largest, float(np.abs(scores).max(initial=0)))
            for row in range(q_length):
                logits = scores[row] + bias[b, h, row]
                if np.isneginf(logits).all():
                    continue
                exponentials = np.exp(logits - logits.max())
                weights[b, h, row] = exponentials / exponentials.sum()
            output[b, h] = weights[b, h] @ v[b, group]
    return Expected(output, weights, largest)


def assert_close(actual: Array, expected: Array, tolerance: float) -> None:
    """Normwise: ‖actual − expected‖ ≤ tolerance·‖expected‖."""
    assert actual.shape == expected.shape
    error = float(np.linalg.norm(actual.astype(np.float64) - expected))
    assert error <= tolerance * float(np.linalg.norm(expected)), (
        f"‖error‖ = {error:.2e}, ‖expected‖ = {np.linalg.norm(expected):.2e}, {tolerance=:.0e}"
    )
