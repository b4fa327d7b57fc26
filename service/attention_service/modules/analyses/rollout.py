"""Attention rollout: how much of each input token is in each row, layer upon layer.

Of Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020
(https://arxiv.org/abs/2005.00928): half of what a row takes in is the row itself, by the
residual connection, and the other half is what it attends to.
"""

from __future__ import annotations

import numpy as np

from attention_wire.tensors import Array


def mixing(mean: Array) -> Array:
    """How a layer mixes rows: half the attention, half the row itself, rows made to sum to 1.

    Args:
        mean: floating point ``[U,U]``, weights averaged over the heads.

    Returns:
        float64 ``[U,U]``.
    """
    mixed = 0.5 * mean.astype(np.float64) + 0.5 * np.eye(len(mean))
    # Rows of weights may sum to less than 1; with their own half they never sum to 0.
    mixed /= mixed.sum(axis=-1, keepdims=True)
    return mixed


def step(mean: Array, before: Array | None) -> Array:
    """The rollout up to a layer, from the one up to the layer before it.

    Args:
        mean: floating point ``[U,U]``, the layer's weights averaged over the heads.
        before: float64 ``[U,U]``, what this gave for the layer before; None for the first.

    Returns:
        float64 ``[U,U]``, rows sum to 1.
    """
    mixed = mixing(mean)
    return mixed if before is None else mixed @ before
