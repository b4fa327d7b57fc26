"""Small plain calls, compiled: all that does not depend on their numbers is found out once.

What such a call computes takes some microseconds; to validate, plan and shape it takes many
times that, and gives the same for every call of equal shapes and options.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from attention_service.attention import values
from attention_service.attention.engine import Engine
from attention_service.attention.graphs import TileSpec
from attention_service.attention.planner import answer_arrays
from attention_service.attention.sdpa import AttentionJob
from attention_wire.tensors import Array

# Of a computation that takes less time than handing it to a thread.
INSTANT_FLOPS = 2**21
# Arrays that one instant call leaves to the next: there are forms by the hundred.
_KEPT_BYTES = 2**15
_RESULTS = frozenset({"output", "weights", "lse", "entropy"})


class Compiled:
    """A small plain call, but for the numbers in its tensors.

    Args:
        job: one that :meth:`takes`.
        engine: runs it.
        parts: where among a call's numbers those of the query, the key and the value stand.

    Attributes:
        is_instant: whether it takes less time than handing it to a thread.
        keeps: whether a call is computed in the arrays of the one before it, and so writes over
            what that one found. Only of instant ones, which nobody computes two of at once.
    """

    def __init__(self, job: AttentionJob, engine: Engine, parts: Mapping[str, slice]) -> None:
        call = job.call
        sizes = call.sizes
        self.is_instant = job.flops <= INSTANT_FLOPS
        self._names = sorted(answer_arrays(call))
        self._session = engine.session(TileSpec("float32", tuple(self._names)))
        self._shapes = {
            "query": (-1, sizes.groups * sizes.q_length, sizes.head_size),
            "key": (-1, sizes.kv_length, sizes.head_size),
            "value": (-1, sizes.kv_length, sizes.v_head_size),
        }
        self._parts = parts
        self._scale = np.array(call.scale, np.float32)
        self._head_size = sizes.head_size
        # The bound of AttentionCall.look, without what no score of a plain call has.
        self._safe = values.safe_score(np.float32)
        self._factor = abs(call.scale)
        count = max(part.stop for part in parts.values())
        size = sum(math.prod(shape) for shape, _ in answer_arrays(call).values()) + count
        is_kept = self._session.shares_memory and size * call.dtype.itemsize <= _KEPT_BYTES
        self.keeps = self.is_instant and is_kept
        if self.keeps:
            self._kept = np.zeros(count, np.float32)
            feeds = self._feeds(self._kept)
            self._found = self._session.run(self._names, feeds)
            self._again = self._session.repeated(feeds, self._found)

    @staticmethod
    def takes(job: AttentionJob) -> bool:
        """Whether one run of one graph in one thread gives all that a call wants."""
        call = job.call
        wants, sizes = call.wants, call.sizes
        if not job.is_small or 0 in sizes.scores:
            return False
        if job.flops > INSTANT_FLOPS and job.kernels != ("composed",):
            return False
        is_plain = call.is_plain and call.alike is not None and call.masking.band is None
        is_whole = wants.heads == tuple(range(sizes.q_num_heads)) and wants.rows == range(
            sizes.q_length
        )
        is_float32 = call.dtype == call.compute_dtype == np.float32
        rows_stand_as_they_are = call.rank != 3
        shows_all = call.can_be_trusted and not call.shows_keys
        return (
            is_plain
            and is_whole
            and is_float32
            and rows_stand_as_they_are
            and shows_all
            and _RESULTS.issuperset(answer_arrays(call))
        )

    def run(self, numbers: Array) -> dict[str, Array]:
        """The arrays of the answer, row-major, in shapes of the graph.

        Args:
            numbers: float32, those of all three tensors, as the parts say.

        Raises:
            values.Doubtful: the numbers need a closer look: compute the call in full.
        """
        # One look at all: what is no bound of a single tensor alone bounds each of them, and
        # where every value is finite, so is their mean.
        with np.errstate(over="ignore", invalid="ignore"):
            largest = math.sqrt(np.dot(numbers, numbers))  # NaN and infinity pass through
        if not largest * self._factor * max(1.0, self._head_size * largest) < self._safe:
            raise values.Doubtful
        if not self.keeps:
            return self._session.run(self._names, self._feeds(numbers))
        self._kept[:] = numbers
        self._again()
        return self._found

    def _feeds(self, numbers: Array) -> dict[str, Array]:
        parts = self._parts
        feeds = {name: numbers[parts[name]].reshape(shape) for name, shape in self._shapes.items()}
        return {**feeds, "scale": self._scale}
