"""Attention in float64 numpy, written for the tests from the formulas alone.

For each head h of each batch element, query i at position p and key j at position t:

    raw     = scale·q_i·k_j
    capped  = softcap·tanh(raw / softcap), or raw
    masked  = capped + attn_mask[i,j] − slope·|p − t|, or −∞ where i does not see j
    lse     = ln(Σ_j exp(masked) + exp(sink))
    weights = exp(masked − lse);   output = Σ_j weights·v_j;   entropy = −Σ_j weights·ln weights

with none of the service's code. Tensors have rank 4: ``query [B,Hq,L,D]``, ``key [B,Hkv,S,D]``,
``value [B,Hkv,S,Dv]``; with a past of P keys everything runs over T = P + S keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# A bias this large swallows every score, in float64 too: what is left of the row is exact.
_SWALLOWS = 1e30
# A key that weighs less than this, next to the heaviest of its row, bears on nothing.
_NEGLIGIBLE = math.log(1e-20)


class Expected(NamedTuple):
    """What a call must give, over all heads and rows.

    Attributes:
        output: ``[B,Hq,L,Dv]``.
        weights: ``[B,Hq,L,T]``.
        largest_score: the largest |raw| of the call, which its rounding grows with.
        lse, entropy: ``[B,Hq,L]``.
        scores: ``raw``, ``softcap`` and ``masked`` → ``[B,Hq,L,T]``.
        row_scale: ``[B,Hq,L]``: the largest number, at least 1, that enters the weights of a
            row. The rounding of a row grows with it.
        present_key, present_value: ``[B,Hkv,T,D]`` and ``[B,Hkv,T,Dv]``, in the inputs' dtype.
    """

    output: Array
    weights: Array
    largest_score: float
    lse: Array
    entropy: Array
    scores: Mapping[str, Array]
    row_scale: Array
    present_key: Array
    present_value: Array


class TopK(NamedTuple):
    """The k largest weights of each row: ``[…,k]``, ``[…,k]``, and ``[…]`` what they leave."""

    indices: Array
    values: Array
    rest: Array


def attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    attn_mask: Array | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    softcap: float = 0.0,
    left_window_size: int = -1,
    right_window_size: int = -1,
    nonpad_kv_seqlen: Array | None = None,
    past_key: Array | None = None,
    past_value: Array | None = None,
    sinks: Array | None = None,
    alibi_slopes: Array | None = None,
    query_document_ids: Array | None = None,
    key_document_ids: Array | None = None,
    query_offset: int | None = None,
    key_offset: int = 0,
) -> Expected:
    """Attention over rank-4 tensors; the options have the contract's names and meanings.

    Raises:
        ValueError: a query sees a key or a value that is not finite.
    """
    present_key = key if past_key is None else np.concatenate((past_key, key), axis=2)
    present_value = value if past_value is None else np.concatenate((past_value, value), axis=2)
    batch, q_heads, q_length, head_size = query.shape
    kv_heads, total = present_key.shape[1], present_key.shape[2]
    groups = q_heads // kv_heads
    factor = 1 / math.sqrt(head_size) if scale is None else scale
    distance = ahead(
        batch,
        q_length,
        total,
        past_length=total - key.shape[2],
        nonpad_kv_seqlen=nonpad_kv_seqlen,
        query_offset=query_offset,
        key_offset=key_offset,
    )
    seen = visible(
        distance,
        is_causal=is_causal,
        left_window_size=left_window_size,
        right_window_size=right_window_size,
        nonpad_kv_seqlen=nonpad_kv_seqlen,
        query_document_ids=query_document_ids,
        key_document_ids=key_document_ids,
    )
    added = bias(
        distance, (batch, q_heads, q_length, total), attn_mask=attn_mask, alibi_slopes=alibi_slopes
    )
    added[~np.broadcast_to(seen[:, None], added.shape)] = -np.inf

    q = query.astype(np.float64)
    k = _unattended_as_zero(present_key.astype(np.float64), added, groups)
    v = _unattended_as_zero(present_value.astype(np.float64), added, groups)
    rows, full = (batch, q_heads, q_length), (batch, q_heads, q_length, total)
    raw, capped, masked, weights = (np.zeros(full) for _ in range(4))
    output = np.zeros((*rows, v.shape[-1]))
    lse, entropy, row_scale = np.zeros(rows), np.zeros(rows), np.ones(rows)
    for b in range(batch):
        for h in range(q_heads):
            raw[b, h] = factor * (q[b, h] @ k[b, h // groups].T)
            capped[b, h] = softcap * np.tanh(raw[b, h] / softcap) if softcap else raw[b, h]
            masked[b, h] = capped[b, h] + added[b, h]
            for i in range(q_length):
                sink = -np.inf if sinks is None else float(sinks[h])
                lse[b, h, i], weights[b, h, i] = _softmax(masked[b, h, i], sink)
                positive = weights[b, h, i][weights[b, h, i] > 0]
                entropy[b, h, i] = -(positive * np.log(positive)).sum()
                row_scale[b, h, i] = _scale(raw[b, h, i], added[b, h, i], masked[b, h, i], sink)
            output[b, h] = weights[b, h] @ v[b, h // groups]
    return Expected(
        output=output,
        weights=weights,
        largest_score=float(np.abs(raw).max(initial=0)),
        lse=lse,
        entropy=entropy,
        scores={"raw": raw, "softcap": capped, "masked": masked},
        row_scale=row_scale,
        present_key=present_key,
        present_value=present_value,
    )


# --- Who sees whom -------------------------------------------------------------------------


def ahead(
    batch: int,
    q_length: int,
    total: int,
    *,
    past_length: int = 0,
    nonpad_kv_seqlen: Array | None = None,
    query_offset: int | None = None,
    key_offset: int = 0,
) -> Array:
    """How far each key's position is ahead of each query's: int ``[B,L,T]``."""
    distance = np.zeros((batch, q_length, total), np.int64)
    for b in range(batch):
        if query_offset is not None:
            first_query = query_offset
        elif nonpad_kv_seqlen is not None:
            first_query = int(nonpad_kv_seqlen[b]) - q_length
        else:
            first_query = past_length
        query_positions = first_query + np.arange(q_length)
        key_positions = key_offset + np.arange(total)
        distance[b] = key_positions[None, :] - query_positions[:, None]
    return distance


def visible(
    distance: Array,
    *,
    is_causal: bool = False,
    left_window_size: int = -1,
    right_window_size: int = -1,
    nonpad_kv_seqlen: Array | None = None,
    query_document_ids: Array | None = None,
    key_document_ids: Array | None = None,
) -> Array:
    """Which keys each query sees, all but the mask considered: bool ``[B,L,T]``."""
    seen = np.ones(distance.shape, bool)
    if is_causal:
        seen &= distance <= 0
    if left_window_size >= 0:
        seen &= distance >= -left_window_size
    if right_window_size >= 0:
        seen &= distance <= right_window_size
    for b in range(len(seen)):
        if nonpad_kv_seqlen is not None:
            seen[b, :, int(nonpad_kv_seqlen[b]) :] = False
        if query_document_ids is not None and key_document_ids is not None:
            seen[b] &= query_document_ids[b][:, None] == key_document_ids[b][None, :]
    return seen


def bias(
    distance: Array,
    full: tuple[int, int, int, int],
    *,
    attn_mask: Array | None = None,
    alibi_slopes: Array | None = None,
) -> Array:
    """What mask and ALiBi add to the scores, −∞ where the mask hides a key: ``[B,Hq,L,T]``."""
    added = np.zeros(full)
    if attn_mask is not None:
        # A last dimension shorter than T is not broadcast: the mask hides the rest.
        short = [(0, 0)] * (attn_mask.ndim - 1) + [(0, full[-1] - attn_mask.shape[-1])]
        if attn_mask.dtype == bool:
            added[~np.broadcast_to(np.pad(attn_mask, short), full)] = -np.inf
        else:
            wide = attn_mask.astype(np.float64)
            added += np.broadcast_to(np.pad(wide, short, constant_values=-np.inf), full)
    if alibi_slopes is not None:
        for h, slope in enumerate(alibi_slopes.astype(np.float64)):
            added[:, h] -= slope * np.abs(distance)
    return added


def attended(added: Array, groups: int) -> Array:
    """Which rows of key and value any query may attend, bool ``[B,Hkv,T]``."""
    batch, q_heads, q_length, total = added.shape
    seen = (added > -np.inf).reshape(batch, q_heads // groups, groups * q_length, total)
    rows: Array = seen.any(axis=2)
    return rows


def _unattended_as_zero(tensor: Array, added: Array, groups: int) -> Array:
    """The tensor ``[B,Hkv,T,…]`` with its rows that are not finite as zeros."""
    broken = ~np.isfinite(tensor).all(axis=-1)
    if (broken & attended(added, groups)).any():
        raise ValueError("a query sees a row that is not finite")
    return np.where(broken[..., None], 0.0, tensor)


# --- One row -------------------------------------------------------------------------------


def _softmax(logits: Array, sink: float) -> tuple[float, Array]:
    """Log-sum-exp of one row and its weights; the sink counts in the denominator only."""
    largest = max(float(logits.max(initial=-np.inf)), sink)
    if largest == -np.inf:
        return -np.inf, np.zeros(logits.shape)
    exponentials = np.exp(logits - largest)
    denominator = float(exponentials.sum()) + math.exp(sink - largest)
    return largest + math.log(denominator), exponentials / denominator


def _scale(raw: Array, added: Array, masked: Array, sink: float) -> float:
    seen = masked > -np.inf
    counts = seen & (masked > masked.max(initial=-np.inf) + _NEGLIGIBLE)
    numbers = np.concatenate((raw[counts], added[counts], [sink, 1.0]))
    return float(np.abs(numbers).max(where=np.abs(numbers) < _SWALLOWS, initial=1))


# --- Parts of the weights ------------------------------------------------------------------


def select(array: Array, heads: Sequence[int] | None, queries: Sequence[int] | None) -> Array:
    """Some heads and rows of ``[B,Hq,L,…]``, in the order given; all by default."""
    if heads is not None:
        array = array[:, list(heads)]
    if queries is not None:
        array = array[:, :, list(queries)]
    return array


def reduce(weights: Array, how: Literal["mean", "max"]) -> Array:
    """The weights of all heads as one: ``[B,H,L,T]`` → ``[B,1,L,T]``."""
    one: Array = np.mean(weights, 1) if how == "mean" else np.max(weights, 1)
    return one[:, None]


def top_k(weights: Array, k: int) -> TopK:
    """The k largest of each row, at most T, by falling weight; ties by rising index."""
    indices = np.argsort(-weights, axis=-1, kind="stable")[..., :k]
    values = np.take_along_axis(weights, indices, axis=-1)
    return TopK(indices, values, weights.sum(axis=-1) - values.sum(axis=-1))


# --- Comparison ----------------------------------------------------------------------------


def assert_close(actual: Array, expected: Array, tolerance: float) -> None:
    """Normwise: ‖actual − expected‖ ≤ tolerance·‖expected‖."""
    assert actual.shape == expected.shape
    error = float(np.linalg.norm(actual.astype(np.float64) - expected))
    assert error <= tolerance * float(np.linalg.norm(expected)), (
        f"‖error‖ = {error:.2e}, ‖expected‖ = {np.linalg.norm(expected):.2e}, {tolerance=:.0e}"
    )
