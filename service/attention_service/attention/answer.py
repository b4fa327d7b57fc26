"""The arrays of a call's answer: made once, in the answer's dtype, and filled by tiles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from attention_service.attention.call import AttentionCall
from attention_service.attention.pages import Pages
from attention_service.attention.planner import Block, answer_arrays
from attention_service.attention.top_k import largest_of_all
from attention_wire.tensors import Array

# A smaller array is copied sooner than it is bound.
_BOUND_BYTES = 2**18
OF_ALL_ROWS = frozenset({"output", "lse", "entropy"})


class Answer:
    """What a call gives, in rank 4. Rows that see no key have their values from the start.

    Args:
        call: a prepared call.
        pages: where large arrays take their memory from.
        given: those of its arrays that are there already.

    Attributes:
        arrays: name → array; complete once every tile has run.
    """

    def __init__(
        self, call: AttentionCall, pages: Pages, given: Mapping[str, Array] | None = None
    ) -> None:
        self._call = call
        self.arrays = dict(given or {})
        for name, like in answer_arrays(call).items():
            if name not in self.arrays and not name.startswith("present_"):
                self.arrays[name] = _blank(call, pages, name, *like)

    def place(self, name: str, block: Block, keys: slice, rows: int) -> Array | None:
        """Where a graph can write a large result of a block itself, ``[N,rows,keys]``; or None."""
        view = self._view(name, block, keys)
        fits = view.flags.c_contiguous and view.dtype == self._call.compute_dtype
        if not fits or view.nbytes < _BOUND_BYTES:
            return None
        return view.reshape(-1, rows, keys.stop - keys.start)

    def put(self, name: str, block: Block, keys: slice, result: Array) -> None:
        """Put a block's result where it belongs, rounded to the answer's dtype."""
        view = self._view(name, block, keys)
        with np.errstate(over="ignore"):  # a score past the range of a half is infinite
            view[...] = result.reshape(view.shape)

    def put_top_k(self, block: Block, keys: slice, found: Mapping[str, Array]) -> None:
        """Put the largest weights of each row: those outside of the block's keys are zero."""
        k, total = self._call.wants.top_k or 1, self._call.sizes.kv_length
        values, indices = largest_of_all(
            found["values"], found["indices"] + keys.start, k, keys, total
        )
        rest = np.maximum(found["mass"] - values.sum(axis=-1, dtype=np.float64), 0)
        for name, array in (("values", values), ("indices", indices), ("rest", rest)):
            self.put(f"weights.{name}", block, keys, array)

    def _view(self, name: str, block: Block, keys: slice) -> Array:
        array = self.arrays[name]
        if name in OF_ALL_ROWS:
            return array[block.batch, block.heads[0] : block.heads[-1] + 1, block.rows]
        heads = slice(block.head_place, block.head_place + len(block.heads))
        rows = slice(block.row_place, block.row_place + block.num_rows)
        if name in ("weights", "scores"):
            return array[block.batch, heads, rows, keys]
        return array[block.batch, heads, rows]


def _blank(
    call: AttentionCall, pages: Pages, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Array:
    """An array with what a row has that sees no key."""
    sees_all = call.masking.band is None and 0 not in call.sizes.scores
    if name in ("weights", "scores") and sees_all:
        return pages.empty(shape, dtype)  # tiles write all of it
    if name == "lse":
        blank = np.full(shape, -np.inf, dtype)
        if call.sinks is not None:
            blank[...] = call.sinks[:, None]
        return blank
    if name == "scores" and call.wants.scores == "masked":
        return np.full(shape, -np.inf, dtype)
    if name == "weights.indices":
        return np.broadcast_to(np.arange(shape[-1], dtype=dtype), shape).copy()
    if name == "output" and call.rank == 3:
        # As the answer will be shaped: heads inside rows.
        batch, heads, length, size = shape
        return np.zeros((batch, length, heads, size), dtype).transpose(0, 2, 1, 3)
    return pages.zeros(shape, dtype)
