"""The part of a layer's weights that is answered, picked out of rows as they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from attention_service.modules.analyses.measures import largest
from attention_wire.tensors import Array


class SelectedWeights:
    """Some rows of some heads, reduced, or their largest alone.

    Args:
        num_heads: heads whose weights come.
        num_units: U, the length of a row.
        rows: those that are wanted, in the order asked.
        reduce: how the heads become one, or None.
        top_k: how many of each row are wanted; None for all.

    Attributes:
        arrays: ``weights`` ``[h,rows,U]``, or ``weights.indices``, ``.values`` and ``.rest``;
            complete once every row has come.
    """

    def __init__(
        self,
        num_heads: int,
        num_units: int,
        rows: Sequence[int],
        reduce: Literal["mean", "max"] | None,
        top_k: int | None,
    ) -> None:
        self._rows = np.array(rows, np.int64)
        self._reduce = reduce
        self._top_k = top_k
        shape = (1 if reduce else num_heads, len(rows))
        if top_k is None:
            self.arrays = {"weights": np.zeros((*shape, num_units), np.float32)}
        else:
            self.arrays = {
                "weights.indices": np.zeros((*shape, top_k), np.int32),
                "weights.values": np.zeros((*shape, top_k), np.float32),
                "weights.rest": np.zeros(shape, np.float32),
            }

    def add(self, rows: slice, weights: Array) -> None:
        """Take some rows, ``[H,R,U]``."""
        (places,) = np.nonzero((self._rows >= rows.start) & (self._rows < rows.stop))
        if not len(places):
            return
        chosen = weights[:, self._rows[places] - rows.start]
        if self._reduce == "mean":
            chosen = chosen.mean(axis=0, keepdims=True)
        elif self._reduce == "max":
            chosen = chosen.max(axis=0, keepdims=True)
        if self._top_k is None:
            self.arrays["weights"][:, places] = chosen
            return
        for name, array in largest(chosen, self._top_k).items():
            self.arrays[f"weights.{name}"][:, places] = array
