"""A layer's attention as a call of the engine: what it sees, and what is wanted of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from attention_service.attention.call import AttentionCall
from attention_service.attention.masking import Band, Masking
from attention_service.attention.selection import Wants
from attention_service.attention.shapes import Sizes
from attention_service.modules.manifest import Layer
from attention_wire.tensors import Array

FLOAT32 = np.dtype(np.float32)


def wanted(
    heads: Sequence[int],
    rows: int | range | tuple[int, ...],
    *,
    output: bool,
    weights: bool,
    entropy: bool = False,
    reduce: Literal["mean", "max"] | None = None,
    top_k: int | None = None,
) -> Wants:
    """What to ask of a layer's attention.

    Args:
        heads: of which weights are wanted.
        rows: of the weights; a number for so many, all that there are.
        output: whether the context is wanted.
        weights: whether they are.
        entropy: whether that of every head and row is.
        reduce: how the weights of the heads become one, or None.
        top_k: how many of each row's weights are wanted, at most L; None for all.
    """
    return Wants(
        output=output,
        weights=weights,
        lse=False,
        entropy=entropy,
        scores=None,
        present=False,
        plan=False,
        heads=tuple(heads),
        rows=range(rows) if isinstance(rows, int) else rows,
        reduce=reduce,
        top_k=top_k,
    )


def call_of(
    layer: Layer,
    heads: tuple[Array, Array, Array],
    lengths: Sequence[int],
    wants: Wants,
    first_row: int = 0,
) -> AttentionCall:
    """A layer's attention of rows from the first one on, which nobody has to validate."""
    query, key, value = heads
    sizes = Sizes(
        query.shape[0], query.shape[1], key.shape[1], query.shape[2], key.shape[2],
        query.shape[3], value.shape[3],
    )  # fmt: skip
    positions = np.arange(first_row, first_row + sizes.q_length)[None]
    masking = Masking(
        sizes,
        _band(layer, positions, sizes.kv_length, lengths),
        query_positions=positions,
        key_positions=np.arange(sizes.kv_length),
    )
    return AttentionCall(
        query=query,
        key=key,
        value=value,
        masking=masking,
        scale=layer.scale,
        dtype=FLOAT32,
        compute_dtype=FLOAT32,
        rank=4,
        wants=wants,
    )


def _band(layer: Layer, positions: Array, keys: int, lengths: Sequence[int]) -> Band | None:
    """Which keys each row sees: none after it, none far from it, no padding."""
    # Padding stands behind the text, where no row of a causal layer looks.
    is_padded = min(lengths) < keys and not layer.is_causal
    return Band.by_position(
        positions,
        np.array(lengths)[:, None] if is_padded else keys,
        keys,
        is_causal=layer.is_causal,
        left_window_size=layer.left_window_size,
        right_window_size=layer.right_window_size,
    )


def bias_of(
    layer: Layer, length: int, lengths: Sequence[int], heads: tuple[int, int]
) -> Array | None:
    """What masks a layer's scores ``[N,G·L,L]``, N texts and their key heads; None for nothing.

    Rows of padding see every key: of a row that sees none the softmax would be NaN.
    """
    band = _band(layer, np.arange(length)[None], length, lengths)
    if band is None:
        return None
    keys, (count, kv_heads) = np.arange(length), heads
    seen = (keys >= band.low[..., None]) & (keys < band.high[..., None])
    if len(seen) > 1:
        seen |= keys[:, None] >= np.array(lengths)[:, None, None]
    bias = np.where(seen, np.float32(0), np.float32(-np.inf))
    bias = np.broadcast_to(bias[:, None], (len(bias), count // kv_heads, length, length))
    bias = bias.reshape(len(bias), -1, length)
    return np.repeat(bias, kv_heads, axis=0) if len(bias) > 1 else bias
