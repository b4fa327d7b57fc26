"""Attention flow: how much of each input token can at most reach each row.

Of Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020
(https://arxiv.org/abs/2005.00928): the layers are a network of pipes, each as wide as the weight
that a row gives a key, and the answer is the largest flow from the row to the input.

The largest flow is found as Goldberg and Tarjan's push–relabel does (J. ACM 35, 1988, "A New
Approach to the Maximum-Flow Problem"), for many pairs of row and input at once: what a row lets
in is pushed towards the input along shortest paths only, what is stuck goes back up, and the
lengths of the paths are exact before each sweep. Since weights of a row sum to 1, no node is ever
too narrow for what reaches it on the way down, and a few sweeps are enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from attention_service.modules.analyses.rollout import mixing
from attention_wire.tensors import Array

# Time goes as U⁴ and as the layers: with 12 of them, 64 units take 5 to 20 seconds of a core.
# Callers refuse more.
MOST_UNITS = 64
# Pairs that are swept together: their flows stay in a core's cache.
_CHUNK_BYTES = 4 << 20
# Pipes narrower than this are closed, rounding having left them open.
_CLOSED = 1e-12
# What may be left unsent of a flow; with the closed pipes, far below float32.
_UNSENT = 1e-9
# Closeness of a node that is one step from the input; far more than any path has steps.
_NEXT_TO_INPUT = np.uint16(2**16 - 1)


def flow(means: Sequence[Array], check: Callable[[], None]) -> Array:
    """The largest flow from each row of the last layer to each input.

    Args:
        means: floating point ``[U,U]`` for each layer from the first, at least one: weights
            averaged over the heads. U is at most `MOST_UNITS`, for the time it takes.
        check: called again and again; what it raises ends the work.

    Returns:
        float32 ``[U,U]``, from row to input, at most 1.
    """
    layers = [mixing(mean) for mean in means]
    if len(layers) == 1 or not len(layers[0]):
        return layers[0].astype(np.float32)
    units = len(layers[0])
    found = np.zeros(units * units)
    stages = max(len(layers) - 2, 1)
    size = max(_CHUNK_BYTES // (stages * units * units * 8), 1)
    for start in range(0, units * units, size):
        pairs = np.arange(start, min(start + size, units * units))
        # All rows of one input after those of another: they end after about as many sweeps.
        inputs, rows = np.divmod(pairs, units)
        chunk = _Networks(layers[1:-1], layers[-1][rows], layers[0].T[inputs])
        for solved, values in chunk.solve(check):
            found[pairs[solved]] = values
    return found.reshape(units, units).T.astype(np.float32)


class _Networks:
    """The networks of P pairs of row and input, with a preflow in each.

    Between the row at the top and the input at the bottom lie n levels of U nodes, counted from
    below; stage s is the pipes from level s + 1 to level s. A preflow sends on no more than has
    come; what is left at a node is its excess.
    """

    def __init__(self, stages: Sequence[Array], entering: Array, leaving: Array) -> None:
        """Let in what the row's pipes hold.

        Args:
            stages: float64 ``[U,U]`` from below, widths of the pipes from row to column.
            entering: float64 ``[P,U]``, widths of the pipes from the row to the top level.
            leaving: float64 ``[P,U]``, widths of the pipes from the bottom level to the input.
        """
        shape = (*entering.shape, entering.shape[-1])
        self._widths = stages
        self._flows = [np.zeros(shape) for _ in stages]
        self._excess = [np.zeros_like(entering) for _ in stages] + [entering]
        self._room = leaving
        self._sent = np.zeros(len(entering))
        self._can_send = [np.broadcast_to(widths > _CLOSED, shape) for widths in stages]
        self._can_return = [np.zeros(shape, np.bool_) for _ in stages]

    def solve(self, check: Callable[[], None]) -> Iterator[tuple[Array, Array]]:
        """Sweep until no excess can reach an input.

        Yields:
            Numbers of pairs as they end, and their flows, float64.
        """
        pairs = np.arange(len(self._room))
        while len(pairs):
            check()
            self._leave()
            closeness = self._closeness()
            reaching = sum(
                (excess * (close > 0)).sum(axis=-1)
                for excess, close in zip(self._excess, closeness, strict=True)
            )
            is_open = reaching > _UNSENT
            if not is_open.all():
                yield pairs[~is_open], self._sent[~is_open]
                pairs = pairs[is_open]
                self._keep(is_open)
                closeness = [close[is_open] for close in closeness]
            for stage in range(len(self._flows)):
                self._return(stage, closeness)
            for stage in reversed(range(len(self._flows))):
                self._send(stage, closeness)

    def _leave(self) -> None:
        leaving = np.minimum(self._excess[0], self._room)
        self._excess[0] = self._excess[0] - leaving
        self._room = self._room - leaving
        self._sent = self._sent + leaving.sum(axis=-1)

    def _closeness(self) -> list[Array]:
        """How near each node of each level is to the input, by pipes that are not full.

        Returns:
            uint16 ``[P,U]`` for each level: one less for each step away, 0 where no way leads.
        """
        close = [(self._room > _CLOSED) * _NEXT_TO_INPUT]
        for can_send in self._can_send:
            close.append(_a_step_on((can_send * close[-1][:, None, :]).max(axis=-1)))
        # Ways may go up and down again: repeat until none is found that is shorter.
        is_changed = True
        while is_changed:
            is_changed = False
            for stage in reversed(range(len(self._flows))):
                above = self._can_return[stage] * close[stage + 1][:, :, None]
                is_changed |= _raise(close, stage, _a_step_on(above.max(axis=-2)))
            if is_changed:
                for stage, can_send in enumerate(self._can_send):
                    below = can_send * close[stage][:, None, :]
                    _raise(close, stage + 1, _a_step_on(below.max(axis=-1)))
        return close

    def _send(self, stage: int, closeness: list[Array]) -> None:
        """Push excess down a stage, along shortest paths, in proportion to the room there is."""
        upper, lower = closeness[stage + 1], closeness[stage]
        excess = self._excess[stage + 1] * (upper > 0)
        if not excess.any():
            return
        moved = self._widths[stage] - self._flows[stage]
        moved *= upper[:, :, None] + np.uint16(1) == lower[:, None, :]
        np.maximum(moved, 0, out=moved)
        room = _sum_over_lower(moved)
        moved *= _share(excess, room)[:, :, None]
        self._flows[stage] += moved
        self._excess[stage + 1] -= np.minimum(excess, room)
        self._excess[stage] += _sum_over_upper(moved)
        self._look_at(stage)

    def _return(self, stage: int, closeness: list[Array]) -> None:
        """Push excess back up a stage, along shortest paths, in proportion to what came."""
        upper, lower = closeness[stage + 1], closeness[stage]
        excess = self._excess[stage] * (lower > 0)
        if not excess.any():
            return
        moved = self._flows[stage] * (lower[:, None, :] + np.uint16(1) == upper[:, :, None])
        came = _sum_over_upper(moved)
        moved *= _share(excess, came)[:, None, :]
        self._flows[stage] -= moved
        self._excess[stage] -= np.minimum(excess, came)
        self._excess[stage + 1] += _sum_over_lower(moved)
        self._look_at(stage)

    def _look_at(self, stage: int) -> None:
        self._can_send[stage] = self._widths[stage] - self._flows[stage] > _CLOSED
        self._can_return[stage] = self._flows[stage] > _CLOSED

    def _keep(self, pairs: Array) -> None:
        self._room, self._sent = self._room[pairs], self._sent[pairs]
        for arrays in (self._flows, self._excess, self._can_send, self._can_return):
            arrays[:] = [array[pairs] for array in arrays]


def _a_step_on(close: Array) -> Array:
    stepped: Array = close - (close > 0)
    return stepped


def _raise(close: list[Array], level: int, found: Array) -> bool:
    is_closer = bool((found > close[level]).any())
    if is_closer:
        close[level] = np.maximum(close[level], found)
    return is_closer


def _sum_over_lower(pipes: Array) -> Array:
    # Twice as fast as `sum`, on arrays this small.
    summed: Array = np.einsum("pul->pu", pipes)
    return summed


def _sum_over_upper(pipes: Array) -> Array:
    summed: Array = np.einsum("pul->pl", pipes)
    return summed


def _share(excess: Array, room: Array) -> Array:
    # Where there is no room nothing moves, whatever the share.
    share: Array = np.minimum(excess / np.where(room > 0, room, 1), 1)
    return share
