"""Numbers of attention weights, gathered from blocks of rows so that no map is ever whole.

Every class here is made for the H heads of a layer and the U units of a text, is given each
row once by ``add``, and then asked for its ``result``.
"""

from __future__ import annotations

import numpy as np

from attention_wire.tensors import Array
from attention_wire.units import Units

# Least score that gives a head the name of a class.
LABEL_SCORE = 0.4
# Fewest rows that have such a key.
LABEL_ROWS = 3


def entropy(weights: Array) -> Array:
    """The entropy of each row, −Σ w ln w in nats, where 0·ln 0 is 0.

    Args:
        weights: float32 ``[…,U]``, none below 0.

    Returns:
        float32 ``[…]``, summed in float64.
    """
    logs = np.log(np.where(weights > 0, weights, np.float32(1)))
    logs *= weights
    # Taken from 0, so that a row of a single 1 has the entropy 0 and not −0.
    found: Array = 0.0 - logs.sum(axis=-1, dtype=np.float64)
    return found.astype(np.float32)


class Entropy:
    """The entropy of every row."""

    def __init__(self, num_heads: int, units: Units) -> None:
        self._found = np.zeros((num_heads, len(units)), np.float32)

    def add(self, rows: slice, weights: Array) -> None:
        """Take in the rows of some units.

        Args:
            rows: the units, without a step.
            weights: float32 ``[H,R,U]``.
        """
        self._found[:, rows] = entropy(weights)

    def result(self) -> Array:
        """float32 ``[H,U]``, in nats."""
        return self._found


class Statistics:
    """The means over all rows of what `attention_wire.answers.Statistics` describes."""

    def __init__(self, num_heads: int, units: Units) -> None:
        self._count = len(units)
        self._separators = _separators(units)
        names = ("entropy", "maximum", "distance", "first", "separator", "itself")
        self._sums = {name: np.zeros(num_heads) for name in names}

    def add(self, rows: slice, weights: Array) -> None:
        """Take in the rows of some units.

        Args:
            rows: the units, without a step.
            weights: float32 ``[H,R,U]``.
        """
        positions = np.arange(rows.start, rows.stop)
        distances = np.abs(positions[:, None] - np.arange(self._count)).astype(np.float64)
        found = {
            "entropy": entropy(weights),
            "maximum": weights.max(axis=-1),
            "first": weights[..., 0],
            "separator": weights[..., self._separators].sum(axis=-1, dtype=np.float64),
            "itself": weights[:, positions - rows.start, positions],
        }
        for name, values in found.items():
            self._sums[name] += values.sum(axis=-1, dtype=np.float64)
        self._sums["distance"] += np.einsum("hru,ru->h", weights, distances)

    def result(self) -> dict[str, Array]:
        """Name → float32 ``[H]``."""
        return {name: _mean(sums, self._count) for name, sums in self._sums.items()}


class Classes:
    """How much of their weight heads put where heads of known kinds put it.

    Each score is the mean over those rows that have such a key at all, 0 where none has one.
    The kinds are of Voita et al. 2019 (https://arxiv.org/abs/1905.09418), Clark et al. 2019
    (https://arxiv.org/abs/1906.04341), and, for ``duplicate`` and ``induction``, Olsson et al.
    2022 (https://arxiv.org/abs/2209.11895).
    """

    def __init__(self, num_heads: int, units: Units) -> None:
        self._units = units
        self._separators = _separators(units)
        names = ("previous", "next", "first", "separator", "duplicate", "induction")
        self._sums = {name: np.zeros(num_heads) for name in names}
        self._counts = dict.fromkeys(names, 0)

    def add(self, rows: slice, weights: Array) -> None:
        """Take in the rows of some units.

        Args:
            rows: the units, without a step.
            weights: float32 ``[H,R,U]``.
        """
        start, last = rows.start, len(self._units) - 1
        positions = np.arange(start, rows.stop)
        later = positions[positions > 0]
        inner = positions[positions < last]
        self._put("previous", weights[:, later - start, later - 1], len(later))
        self._put("next", weights[:, inner - start, inner + 1], len(inner))
        self._put("first", weights[:, later - start, 0], len(later))
        of_text = ~self._units.special[rows]
        if len(self._separators):
            masses = weights[..., self._separators].sum(axis=-1, dtype=np.float64)
            self._put("separator", masses[:, of_text], int(of_text.sum()))
        ids = self._units.ids
        repeats = ids[rows, None] == ids
        repeats &= np.arange(len(ids)) < positions[:, None]
        repeats &= of_text[:, None]
        row, earlier = np.nonzero(repeats)
        count = int(repeats.any(axis=-1).sum())
        self._put("duplicate", weights[:, row, earlier], count)
        self._put("induction", weights[:, row, earlier + 1], count)

    def _put(self, name: str, weights: Array, count: int) -> None:
        self._sums[name] += weights.sum(axis=-1, dtype=np.float64)
        self._counts[name] += count

    def result(self) -> dict[str, Array]:
        """Name → float32 ``[H]``, from 0 to 1."""
        return {name: _mean(sums, self._counts[name]) for name, sums in self._sums.items()}

    def labels(self) -> list[str | None]:
        """The class of each head: the one with the highest score, if that is `LABEL_SCORE`.

        A class of which there are fewer than `LABEL_ROWS` rows names no head: where a single
        word repeats, one row would tell what the head is.

        Returns:
            H names; None where no score is high enough. Of equal scores the first counts.
        """
        scores = self.result()
        names = [name for name in scores if self._counts[name] >= LABEL_ROWS]
        if not names:
            return [None] * len(scores["first"])
        table = np.stack([scores[name] for name in names])
        is_clear = table.max(axis=0) >= LABEL_SCORE
        best = table.argmax(axis=0)
        return [
            names[index] if clear else None
            for index, clear in zip(best.tolist(), is_clear.tolist(), strict=True)
        ]


class Blocks:
    """How much the rows of each text of a pair put on the keys of each."""

    def __init__(self, num_heads: int, units: Units) -> None:
        self._segments = units.segments
        self._is_of = (units.segments[:, None] == np.arange(2)).astype(np.float32)
        self._sums = np.zeros((num_heads, 2, 2))

    def add(self, rows: slice, weights: Array) -> None:
        """Take in the rows of some units.

        Args:
            rows: the units, without a step.
            weights: float32 ``[H,R,U]``.
        """
        masses = weights @ self._is_of
        for segment in range(2):
            chosen = masses[:, self._segments[rows] == segment]
            self._sums[:, segment] += chosen.sum(axis=1, dtype=np.float64)

    def result(self) -> Array:
        """float32 ``[H,2,2]``: the mean mass of the rows of one text on the keys of the other."""
        counts = np.maximum(self._is_of.sum(axis=0, dtype=np.float64), 1)
        means: Array = self._sums / counts[:, None]
        return means.astype(np.float32)


class Mean:
    """The mean over the heads, of every row: what rollout and flow start from."""

    def __init__(self, num_heads: int, units: Units) -> None:
        self._num_heads = num_heads
        self._mean = np.zeros((len(units), len(units)))

    def add(self, rows: slice, weights: Array) -> None:
        """Take in the rows of some units.

        Args:
            rows: the units, without a step.
            weights: float32 ``[H,R,U]``.
        """
        self._mean[rows] = weights.sum(axis=0, dtype=np.float64) / self._num_heads

    def result(self) -> Array:
        """float64 ``[U,U]``."""
        return self._mean


def largest(weights: Array, k: int) -> dict[str, Array]:
    """The k largest weights of each row, and what they leave out.

    Args:
        weights: float32 ``[…,U]``.
        k: how many, at least 1; cut to U.

    Returns:
        ``indices`` int32 and ``values`` float32 ``[…,k]``, falling, ties to the lower index;
        ``rest`` float32 ``[…]``, the sum of the others, at least 0.
    """
    total = weights.shape[-1]
    k = min(k, total)
    # One integer for weight and index makes all keys different, so that an unstable selection
    # keeps to the order of ties. Adding 0 makes −0 a 0; flipping bits puts negative ones below.
    bits = (weights + np.float32(0)).view(np.int32)
    keys = np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits).astype(np.int64)
    keys <<= 32
    keys |= np.arange(total - 1, -1, -1)
    if k < total:
        keys = np.partition(keys, total - k, axis=-1)[..., total - k :]
    keys.sort(axis=-1)
    indices = total - 1 - (keys[..., ::-1] & 0xFFFFFFFF)
    values = np.take_along_axis(weights, indices, axis=-1)
    sums = weights.sum(axis=-1, dtype=np.float64) - values.sum(axis=-1, dtype=np.float64)
    return {
        "indices": indices.astype(np.int32),
        "values": values,
        "rest": np.maximum(sums, 0).astype(np.float32),
    }


def _separators(units: Units) -> Array:
    special = np.flatnonzero(units.special)
    return special[special > 0]


def _mean(sums: Array, count: int) -> Array:
    return (sums / max(count, 1)).astype(np.float32)
