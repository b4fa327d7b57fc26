"""A planned call, computed: its tiles run in the engine's lanes and fill its arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from attention_service.attention.answer import Answer
from attention_service.attention.call import AttentionCall
from attention_service.attention.engine import Engine
from attention_service.attention.lanes import never
from attention_service.attention.planner import Plan
from attention_service.attention.tiles import tiles
from attention_wire.tensors import Array


def compute(
    call: AttentionCall,
    how: Plan,
    engine: Engine,
    cancelled: Callable[[], bool] = never,
    given: Mapping[str, Array] | None = None,
) -> dict[str, Array]:
    """The arrays of a call's answer, in rank 4.

    Args:
        call: a prepared call, or one that is trusted.
        how: its plan.
        engine: runs the tiles.
        cancelled: looked at before each of them.
        given: arrays of the answer to be filled, zero where no key is seen; the others are made.

    Raises:
        Cancelled: ``cancelled()`` was true.
        Doubtful: a call that is trusted has to be prepared first.
    """
    filled = Answer(call, engine.pages, given)
    work = list(tiles(call, how, filled, engine.session, engine.patterns))
    if call.is_trusted:
        if len(work) > 1:
            work.append(call.look)  # beside the last tiles
        else:
            call.look()
    engine.lanes.run(work, cancelled)
    return filled.arrays
