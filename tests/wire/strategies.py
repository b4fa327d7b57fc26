"""Arrays of every dtype and bit pattern, as Hypothesis draws them."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from attention_wire.tensors import DTYPES, Array

# The same examples in every run, and none kept in a folder.
repeatable = settings(derandomize=True, database=None, deadline=None, max_examples=150)

dtype_names = st.sampled_from(sorted(DTYPES))
shapes = st.lists(st.integers(0, 3), max_size=4).map(tuple)


@st.composite
def arrays(
    draw: st.DrawFn,
    names: st.SearchStrategy[str] = dtype_names,
    shape: st.SearchStrategy[tuple[int, ...]] = shapes,
) -> Array:
    """An array of any bits: subnormals, both zeros, infinities and NaNs with it."""
    dtype = DTYPES[draw(names)]
    sizes = draw(shape)
    count = math.prod(sizes) * dtype.itemsize
    if dtype.kind == "b":
        raw = bytes(draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)))
    else:
        raw = draw(st.binary(min_size=count, max_size=count))
    return np.frombuffer(raw, dtype).reshape(sizes)


def same(left: Array, right: Array) -> bool:
    """Equal in dtype, shape, values and the signs of zeros; any NaN equals any other."""
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        return False
    wide = (left, right) if left.dtype.kind in "bi" else (_wide(left), _wide(right))
    return bool(np.array_equal(*wide, equal_nan=True) and np.all(_signs(left) == _signs(right)))


def _wide(array: Array) -> Array:
    with np.errstate(invalid="ignore"):  # a signalling NaN turns quiet
        return array.astype(np.float64)


def _signs(array: Array) -> Array:
    if array.dtype.kind in "bi":
        return np.zeros(array.shape)
    wide = _wide(array)
    return np.where(np.isnan(wide), 0, np.signbit(wide))
