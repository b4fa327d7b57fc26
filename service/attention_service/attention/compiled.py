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
_RESULTS = frozenset({"output", "weights", "lse", "entropy"})


class Compiled:
    """A small plain call, but for the numbers in its tensors.

    Args:
        job: one that :meth:`takes`.
        engine: runs it.

    Attributes:
        is_instant: whether it takes less time than handing it to a thread.
    """

    def __init__(self, job: AttentionJob, engine: Engine) -> None:
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
        self._scale = np.array(call.scale, np.float32)
        self._head_size = sizes.head_size
        # The bound of AttentionCall.look, without what no score of a plain call has.
        self._safe = values.safe_score(np.float32)
        self._factor = abs(call.scale)

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

    def run(self, numbers: Array, parts: Mapping[str, slice]) -> dict[str, Array]:
        """The arrays of the answer, row-major, in shapes of the graph.

        Args:
            numbers: float32, those of all three tensors, one after the other.
            parts: where in it those of the query, the key and the value stand.

        Raises:
            values.Doubtful: the numbers need a closer look: compute the call in full.
        """
        # One look at all: what is no bound of a single tensor alone bounds each of them, and
        # where every value is finite, so is their mean.
        with np.errstate(over="ignore", invalid="ignore"):
            largest = math.sqrt(np.dot(numbers, numbers))  # NaN and infinity pass through
        if not largest * self._factor * max(1.0, self._head_size * largest) < self._safe:
            raise values.Doubtful
        feeds = {name: numbers[parts[name]].reshape(shape) for name, shape in self._shapes.items()}
        feeds["scale"] = self._scale
        return self._session.run(self._names, feeds)
