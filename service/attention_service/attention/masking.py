"""Which keys a query may see, and what is added to the scores of those it sees.

What is known by position alone (causal, windows, padding, a short mask) is an interval of
keys for each query row, a :class:`Band`: tiles skip what is outside of it, and add nothing
where a tile lies inside. Everything else becomes a bias, made for one tile at a time.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np

from attention_service.attention.shapes import Sizes
from attention_wire.tensors import Array

# Booleans of one block of rows, where all rows have to be looked at.
_BLOCK_ELEMENTS = 2**22
# Whole numbers below this are exact in float32.
_EXACT_IN_FLOAT32 = 2**24

Rows = slice | Array


@dataclass(frozen=True, slots=True)
class Band:
    """For each query row the keys that it may see by position: ``low ≤ j < high``.

    Attributes:
        low, high: int64 ``[B or 1, L]``; neither falls from one row to the next.
    """

    low: Array
    high: Array

    @classmethod
    def by_position(
        cls,
        index: Array,
        ends: Array | int,
        keys: int,
        *,
        is_causal: bool = False,
        left_window_size: int = -1,
        right_window_size: int = -1,
    ) -> Self | None:
        """What causality, windows and padding leave; None where every row sees every key.

        Args:
            index: int64 ``[B or 1, L]``, the key at each row's own position.
            ends: how many keys there are that are no padding: one number, or ``[B or 1, 1]``.
            keys: T.
            is_causal: whether a row sees no key after its own.
            left_window_size: keys before its own that it sees; −1: all.
            right_window_size: keys after its own that it sees; −1: all.
        """
        low = np.zeros((1, index.shape[1]), np.int64)
        high = np.minimum(np.full_like(low, keys), ends)
        if is_causal:
            high = np.minimum(high, index + 1)
        if left_window_size >= 0:
            low = np.maximum(low, index - left_window_size)
        if right_window_size >= 0:
            high = np.minimum(high, index + right_window_size + 1)
        low = np.minimum(low, keys)
        high = np.maximum(high, low)
        low, high = np.broadcast_arrays(low, high)
        return None if not low.any() and (high == keys).all() else cls(low, high)

    def of(self, batch: slice, rows: Rows) -> tuple[Array, Array]:
        """Low and high of these rows, ``[b or 1, rows]``."""
        part = _of(batch, self.low)
        return self.low[part][:, rows], self.high[part][:, rows]


@dataclass(frozen=True, slots=True)
class Masking:
    """All that masks or biases the scores of a call.

    Attributes:
        sizes: of the call.
        band: None where every query sees every key by position.
        query_positions: int64 ``[B or 1, L]``.
        key_positions: int64 ``[T]``.
        mask: None, or bool (true = may attend) or float (added), rank 4, each of the first
            three dimensions that of ``[B,Hq,L,T]`` or 1, the last at most T.
        slopes: None, or ALiBi's float64 ``[Hq]``.
        query_documents, key_documents: None, or ints ``[B,L]`` and ``[B,T]``.
    """

    sizes: Sizes
    band: Band | None
    query_positions: Array
    key_positions: Array
    mask: Array | None = None
    slopes: Array | None = None
    query_documents: Array | None = None
    key_documents: Array | None = None

    @property
    def alike(self) -> Hashable | None:
        """Equal for calls whose rows see the same keys, of every batch element; None for others."""
        band = self.band
        if self.has_bias or (band is not None and band.low.shape[0] > 1):
            return None
        return self.sizes, None if band is None else (band.low.tobytes(), band.high.tobytes())

    @property
    def has_bias(self) -> bool:
        """Whether more than positions decides."""
        return any(getattr(self, name) is not None for name in _BEYOND_POSITIONS)

    @property
    def bias_has_heads(self) -> bool:
        """Whether the bias of one head differs from that of another."""
        return self.slopes is not None or (self.mask is not None and self.mask.shape[1] > 1)

    def keys(self, batch: slice, rows: Rows) -> tuple[int, int]:
        """The range of keys that any of these rows may see by position."""
        if self.band is None:
            return 0, self.sizes.kv_length
        low, high = self.band.of(batch, rows)
        start, stop = int(low.min()), int(high.max())
        return (start, stop) if start < stop else (0, 0)

    def inside(self, batch: slice, rows: Rows) -> tuple[int, int]:
        """The range of keys that all of these rows see by position, empty if there is none."""
        if self.band is None:
            return 0, self.sizes.kv_length
        low, high = self.band.of(batch, rows)
        return int(low.max()), int(high.min())

    def allowed(self, batch: slice, heads: slice, rows: Rows, keys: slice) -> Array | None:
        """Who sees whom, bool ``[b,h,rows,keys]``, each of b and h whole or 1; None for all."""
        allowed: Array | None = None
        if self.band is not None:
            low, high = self.band.of(batch, rows)
            index = np.arange(keys.start, keys.stop)
            seen = (index >= low[..., None]) & (index < high[..., None])
            allowed = None if seen.all() else seen[:, None]
        if self.query_documents is not None and self.key_documents is not None:
            same: Array = (
                self.query_documents[batch][:, rows, None]
                == self.key_documents[batch][:, None, keys]
            )
            allowed = same[:, None] if allowed is None else np.logical_and(allowed, same[:, None])
        if self.mask is not None and self.mask.dtype.kind == "b":
            part = self._mask_part(self.mask, batch, heads, rows, keys)
            allowed = part if allowed is None else np.logical_and(allowed, part)
        return allowed

    def bias(
        self, batch: slice, heads: slice, rows: Rows, keys: slice, dtype: np.dtype[Any]
    ) -> Array | None:
        """What a tile adds to its scores, −∞ where a key is not seen; None for nothing.

        ``[b,h,rows,keys]``, each of b and h whole or 1.
        """
        allowed = self.allowed(batch, heads, rows, keys)
        bias = self._added(batch, heads, rows, keys, dtype)
        if bias is None:
            if allowed is None:
                return None
            hard: Array = np.where(allowed, dtype.type(0), dtype.type(-np.inf))
            return hard
        if allowed is None:
            return bias
        shape = np.broadcast_shapes(bias.shape, allowed.shape)
        if shape != bias.shape:
            bias = np.broadcast_to(bias, shape).copy()
        np.copyto(bias, dtype.type(-np.inf), where=~allowed)
        return bias

    def _added(
        self, batch: slice, heads: slice, rows: Rows, keys: slice, dtype: np.dtype[Any]
    ) -> Array | None:
        """A float mask and ALiBi, in an array of their own."""
        alibi = None if self.slopes is None else self._alibi(batch, heads, rows, keys, dtype)
        if self.mask is None or self.mask.dtype.kind == "b":
            return alibi
        part = self._mask_part(self.mask, batch, heads, rows, keys)
        with np.errstate(over="ignore"):  # past the range a bias masks, as −∞ does
            if alibi is None:
                return part.astype(dtype)
            return np.add(part, alibi, dtype=np.float64).astype(dtype)

    def _alibi(
        self, batch: slice, heads: slice, rows: Rows, keys: slice, dtype: np.dtype[Any]
    ) -> Array:
        """−slope·|distance|, ``[b or 1,h,rows,keys]``."""
        if self.slopes is None:
            raise ValueError("the call has no slopes")
        slopes = -self.slopes[None, heads, None, None]
        # Counted from the tile's first key, positions stay small.
        queries = self.query_positions[_of(batch, self.query_positions)][:, rows]
        queries = queries[:, None, :, None] - self.key_positions[keys.start]
        index = np.arange(keys.stop - keys.start)
        farthest = max(int(np.abs(queries).max(initial=0)), len(index))
        is_exact = farthest < _EXACT_IN_FLOAT32 and np.abs(slopes).max() < np.finfo(np.float32).max
        wide = dtype if is_exact else np.dtype(np.float64)
        distance: Array = queries.astype(wide) - index.astype(wide)
        np.abs(distance, out=distance)
        if slopes.size == 1:
            distance *= slopes.item()
        else:
            distance = distance * slopes.astype(wide)
        with np.errstate(over="ignore"):
            return distance.astype(dtype, copy=False)

    def attended(self) -> Array:
        """Which keys any query may attend, bool ``[B, Hq or 1, T]``."""
        sizes = self.sizes
        heads = sizes.q_num_heads if self.mask is not None and self.mask.shape[1] > 1 else 1
        seen = np.zeros((sizes.batch, heads, sizes.kv_length), bool)
        everything = (slice(0, sizes.batch), slice(0, heads))
        keys = slice(0, sizes.kv_length)
        block = max(1, _BLOCK_ELEMENTS // max(1, seen.size))
        for start in range(0, sizes.q_length, block):
            rows = slice(start, min(start + block, sizes.q_length))
            allowed = self.allowed(*everything, rows, keys)
            if self.mask is not None and self.mask.dtype.kind != "b":
                part = self._mask_part(self.mask, *everything, rows, keys) != -np.inf
                allowed = part if allowed is None else allowed & part
            seen |= True if allowed is None else allowed.any(axis=2)
        return seen

    def _mask_part(self, mask: Array, batch: slice, heads: slice, rows: Rows, keys: slice) -> Array:
        part = mask[
            batch if mask.shape[0] > 1 else slice(None), heads if mask.shape[1] > 1 else slice(None)
        ]
        part = part[:, :, rows if mask.shape[2] > 1 else slice(None), keys]
        missing = keys.stop - max(keys.start, mask.shape[3])
        if missing > 0:
            fill: Any = False if mask.dtype.kind == "b" else -np.inf
            part = np.pad(part, ((0, 0), (0, 0), (0, 0), (0, missing)), constant_values=fill)
        return part


_BEYOND_POSITIONS = tuple(field.name for field in fields(Masking) if field.default is None)


def _of(batch: slice, array: Array) -> slice:
    return batch if array.shape[0] > 1 else slice(None)
