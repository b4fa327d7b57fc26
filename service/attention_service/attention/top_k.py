"""The k largest of rows of which only a part was looked at; the rest is known to be zero."""

from __future__ import annotations

import numpy as np

from attention_wire.tensors import Array


def largest_of_all(
    values: Array, indices: Array, k: int, keys: slice, total: int
) -> tuple[Array, Array]:
    """The k largest of all keys, given the largest among ``keys``; all others weigh 0.

    Args:
        values: ``[…,j]``, j = min(k, number of keys), falling, ties by rising index.
        indices: ``[…,j]`` their keys.
        k: how many are wanted, at most ``total``.
        keys: the range of keys that was looked at.
        total: number of all keys.

    Returns:
        ``values [..., k]`` and ``indices [..., k]``, falling, ties to the lower index.
    """
    outside = total - (keys.stop - keys.start)
    if outside == 0 or (values.shape[-1] == k and bool((values[..., -1] > 0).all())):
        return values, indices
    # Of the zeros outside only the k lowest keys can come in.
    below = np.arange(min(keys.start, k))
    above = np.arange(keys.stop, min(total, keys.stop + k - len(below)))
    zeros = np.concatenate((below, above))
    shape = (*values.shape[:-1], len(zeros))
    values = np.concatenate((values, np.zeros(shape, values.dtype)), axis=-1)
    indices = np.concatenate((indices, np.broadcast_to(zeros, shape)), axis=-1)
    order = np.lexsort((indices, -values), axis=-1)[..., :k]
    return np.take_along_axis(values, order, -1), np.take_along_axis(indices, order, -1)
