"""What goes into a tile's graph: its part of the tensors, its bias, its sinks.

Blocks of rows that lie in the same way in the band share their bias, so that causal calls
make one triangle, however many tiles and heads they have.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

import numpy as np

from attention_service.attention.call import AttentionCall
from attention_service.attention.graphs import PIECE_KEYS, BiasKind
from attention_service.attention.patterns import Pattern, Patterns
from attention_service.attention.planner import Block
from attention_wire.tensors import Array

_NO_BIAS = Pattern(None, None)


class Biased(NamedTuple):
    """The keys of a tile and what is added to their scores.

    Attributes:
        keys: the range of keys that the tile looks at.
        bias, dead, places: of its pattern.
    """

    keys: slice
    bias: Array | None
    dead: Array | None
    places: Array | None

    @property
    def kind(self) -> BiasKind:
        """Which of the composed graph's forms takes it."""
        if self.bias is None:
            return "none"
        return "all" if self.places is None else "end"


class _Place(NamedTuple):
    """Where a block lies in the band: its keys, the first with a bias, and which bias."""

    keys: slice
    start: int
    pattern: Hashable | None


class Feeds:
    """The inputs of the tiles of one step of a call.

    Args:
        call: a prepared call.
        patterns: the biases that calls share.

    Attributes:
        cap: the softcap, a scalar.
    """

    def __init__(self, call: AttentionCall, patterns: Patterns) -> None:
        self._call = call
        self._patterns = patterns
        self._scalar = {"scale": np.array(call.scale, call.compute_dtype)}
        self.cap = np.array(call.softcap, call.compute_dtype)
        self._places: dict[tuple[int, int, bool], _Place] = {}
        self._last: tuple[object, Biased] | None = None

    def tensors(self, block: Block, keys: slice) -> dict[str, Array]:
        """``query [N,M,D]``, ``key [N,T,D]``, ``value [N,T,Dv]`` and the scale.

        Views where the block's part is contiguous and has the compute dtype.
        """
        call = self._call
        dtype = call.compute_dtype
        groups = call.sizes.groups
        first, last = block.heads[0], block.heads[-1]
        kv_heads = slice(first // groups, last // groups + 1)
        count = (block.batch.stop - block.batch.start) * (kv_heads.stop - kv_heads.start)
        query = call.query[block.batch, first : last + 1][:, :, block.rows]
        key = call.key[block.batch, kv_heads, keys]
        value = call.value[block.batch, kv_heads, keys]
        groups = query.shape[1] // key.shape[1]
        return {
            "query": np.ascontiguousarray(
                query.reshape(count, groups * block.num_rows, query.shape[3]), dtype
            ),
            "key": np.ascontiguousarray(key.reshape(count, *key.shape[2:]), dtype),
            "value": np.ascontiguousarray(value.reshape(count, *value.shape[2:]), dtype),
            **self._scalar,
        }

    def sink(self, block: Block) -> Array | None:
        """Each row's sink, float64 ``[N,M,1]``, or None."""
        sinks = self._call.sinks
        if sinks is None:
            return None
        return self._as_rows(block, sinks[list(block.heads)][None, :, None, None], whole=True)

    def biased(self, block: Block, *, every_key: bool, in_parts: bool) -> Biased:
        """The keys of a block and their bias.

        Args:
            block: the block.
            every_key: whether keys that no row sees are looked at too.
            in_parts: whether the keys before the band's edge may go without a bias.
        """
        call, masking = self._call, self._call.masking
        if masking.band is None and not masking.has_bias:
            keys = slice(0, call.sizes.kv_length)
            return Biased(keys, *_NO_BIAS)
        if masking.has_bias:
            return self._with_mask(block, every_key=every_key)
        place = self._place(block, every_key=every_key, in_parts=in_parts)
        keys, start = place.keys, place.start
        if place.pattern is None:
            return Biased(keys, *_NO_BIAS)
        found = self._patterns.get(place.pattern, lambda: self._pattern(block, keys, start))
        return Biased(keys, *found)

    def _place(self, block: Block, *, every_key: bool, in_parts: bool) -> _Place:
        band = self._call.masking.band
        per_batch = band is not None and band.low.shape[0] > 1
        at = (block.batch.start if per_batch else 0, block.row_place, every_key)
        found = self._places.get(at)
        if found is None:
            found = self._places[at] = self._in_band(block, every_key, in_parts)
        return found

    def _in_band(self, block: Block, every_key: bool, in_parts: bool) -> _Place:
        masking = self._call.masking
        keys = self._keys(block, every_key=every_key)
        inside = masking.inside(block.batch, block.rows)
        sees_all = inside[0] <= keys.start and keys.stop <= inside[1]
        if masking.band is None or sees_all or keys.start == keys.stop:
            return _Place(keys, keys.stop, None)
        start = keys.start
        if in_parts and inside[0] <= start:
            # Whole pieces, if there are keys enough: what no row sees is masked there.
            stop = start + -(-(keys.stop - start) // PIECE_KEYS) * PIECE_KEYS
            before = start + (inside[1] - start) // PIECE_KEYS * PIECE_KEYS
            if start < before and stop <= self._call.sizes.kv_length:
                keys, start = slice(start, stop), before
        low, high = masking.band.of(block.batch, block.rows)
        pattern = (
            self._call.compute_dtype.char,
            (block.batch.stop - block.batch.start, len(block.heads), self._call.sizes.groups),
            (low.shape, keys.stop - start, start > keys.start),
            np.maximum(low - start, 0).tobytes() + (high - start).tobytes(),
        )
        return _Place(keys, start, pattern)

    def _with_mask(self, block: Block, *, every_key: bool) -> Biased:
        # Heads that share their bias follow each other.
        heads = block.heads if self._call.masking.bias_has_heads else len(block.heads)
        place = (block.batch.start, block.row_place, heads, every_key)
        last = self._last
        if last is not None and last[0] == place:
            return last[1]
        keys = self._keys(block, every_key=every_key)
        found = Biased(keys, *_NO_BIAS)
        if keys.start < keys.stop:
            found = Biased(keys, *self._pattern(block, keys, keys.start))
        self._last = (place, found)
        return found

    def _keys(self, block: Block, *, every_key: bool) -> slice:
        if every_key:
            return slice(0, self._call.sizes.kv_length)
        return slice(*self._call.masking.keys(block.batch, block.rows))

    def _pattern(self, block: Block, keys: slice, start: int) -> Pattern:
        dtype = self._call.compute_dtype
        heads = slice(block.heads[0], block.heads[-1] + 1)
        edge = slice(start, keys.stop)
        bias = self._call.masking.bias(block.batch, heads, block.rows, edge, dtype)
        if bias is None:
            return Pattern(None, None)
        dead = bias.max(axis=-1, keepdims=True) == -np.inf
        if start > keys.start:
            return self._pieces(self._as_rows(block, bias, whole=True))
        if not dead.any():
            return Pattern(self._as_rows(block, bias), None)
        bias = np.where(dead, dtype.type(0), bias)
        return Pattern(self._as_rows(block, bias), self._as_rows(block, dead)[..., 0])

    @staticmethod
    def _pieces(bias: Array) -> Pattern:
        """A bias ``[N,M,…]`` of the last keys, in pieces that are counted from the last."""
        bias = bias.reshape(*bias.shape[:2], -1, PIECE_KEYS)
        places = np.moveaxis(np.indices(bias.shape[:3]), 0, -1).copy()
        places[..., 2] -= bias.shape[2]
        return Pattern(bias, None, places)

    def _as_rows(self, block: Block, array: Array, *, whole: bool = False) -> Array:
        """``[b,h,rows,…]``, each but the last whole or 1, as ``[N or 1, M, …]``."""
        width = array.shape[-1]
        groups = self._call.sizes.groups if len(block.heads) > 1 else 1
        if array.shape[:2] == (1, 1) and not whole:
            one = np.broadcast_to(array[0], (groups, block.num_rows, width))
            return np.ascontiguousarray(one.reshape(1, -1, width))
        batch = block.batch.stop - block.batch.start
        full = np.broadcast_to(array, (batch, len(block.heads), block.num_rows, width))
        return np.ascontiguousarray(full.reshape(-1, groups * block.num_rows, width))
