"""Small plain calls, compiled: all that does not depend on their numbers is found out once.

What such a call computes takes some microseconds; to validate, plan and shape it takes many
times that, and gives the same for every call of equal shapes and options.
"""

from __future__ import annotations

import math

import numpy as np

from attention_service.attention import values
from attention_service.attention.call import AttentionCall
from attention_service.attention.engine import Engine
from attention_service.attention.graphs import TileSpec
from attention_service.attention.planner import Plan, answer_arrays
from attention_wire.tensors import Array

# Of a computation that takes less time than handing it to a thread.
INSTANT_FLOPS = 2**21
_RESULTS = frozenset({"output", "weights", "lse", "entropy"})


class Compiled:
    """A small plain call, but for the numbers in its tensors.

    Args:
        call: one that :meth:`takes`.
        engine: runs it.
    """

    def __init__(self, call: AttentionCall, engine: Engine) -> None:
        sizes = call.sizes
        self._shapes = {name: shape for name, (shape, _) in answer_arrays(call).items()}
        if call.rank == 2:
            self._shapes = {name: shape[2:] for name, shape in self._shapes.items()}
        self._names = sorted(self._shapes)
        self._session = engine.session(TileSpec("float32", tuple(self._names)))
        self._query_shape = (-1, sizes.groups * sizes.q_length, sizes.head_size)
        self._key_shape = (-1, sizes.kv_length, sizes.head_size)
        self._value_shape = (-1, sizes.kv_length, sizes.v_head_size)
        self._scale = np.array(call.scale, np.float32)
        self._head_size = sizes.head_size
        # The bound of AttentionCall.look, without what no score of a plain call has.
        self._safe = values.safe_score(np.float32)
        self._factor = abs(call.scale)

    @staticmethod
    def takes(call: AttentionCall, how: Plan) -> bool:
        """Whether one run of one graph gives all that a call wants, at once.

        Args:
            call: the call.
            how: its plan.
        """
        if [cost.tiles for cost in how.costs] != [1] or how.costs[0].flops > INSTANT_FLOPS:
            return False
        wants, sizes = call.wants, call.sizes
        is_plain = call.is_stackable and call.masking.band is None and not call.softcap
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

    def run(self, query: Array, key: Array, value: Array) -> dict[str, Array]:
        """The arrays of the answer.

        Args:
            query: float32, its shape and rank those of the call.
            key: likewise.
            value: likewise.

        Raises:
            values.Doubtful: the numbers need a closer look: compute the call in full.
        """
        feeds = {
            "query": query.reshape(self._query_shape),
            "key": key.reshape(self._key_shape),
            "value": value.reshape(self._value_shape),
            "scale": self._scale,
        }
        found = self._session.run(self._names, feeds)
        with np.errstate(over="ignore", invalid="ignore"):
            squares = [float(np.vdot(array, array)) for array in (query, key, found["output"])]
        if not all(map(math.isfinite, squares)):
            raise values.Doubtful
        largest_query, largest_key = math.sqrt(squares[0]), math.sqrt(squares[1])
        score = largest_query * self._factor * max(1.0, self._head_size * largest_key)
        if not score < self._safe:
            raise values.Doubtful
        return {name: found[name].reshape(shape) for name, shape in self._shapes.items()}
