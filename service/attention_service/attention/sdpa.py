"""Plain attention as a job: a request over tensors, planned, run and shaped as an answer."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from attention_service.attention.call import AttentionCall
from attention_service.attention.engine import Engine
from attention_service.attention.job import Job, Shapes
from attention_service.attention.planner import Plan, plan
from attention_wire.schemas import AttentionRequest
from attention_wire.tensors import Array, dtype_name


class AttentionJob(Job):
    """Scaled dot-product attention over the tensors of one request.

    Args:
        request: the parsed request.
        engine: runs the plan.

    Raises:
        ProblemError: the request's tensors do not fit each other.
    """

    smaller = 'Ask for {"return": {"weights": false}}, or send fewer heads or shorter sequences.'

    def __init__(self, request: AttentionRequest, engine: Engine) -> None:
        self.call = AttentionCall.from_request(request)
        self.plan: Plan = plan(self.call)
        self._engine = engine

    @property
    @override
    def peak_bytes(self) -> int:
        return self.plan.peak_bytes

    @property
    @override
    def answer_shapes(self) -> Shapes:
        sizes, wants = self.call.sizes, self.call.wants
        shapes = {"output": sizes.output, "weights": sizes.scores}
        dtype = dtype_name(self.call.query)
        return {name: (shape, dtype) for name, shape in shapes.items() if getattr(wants, name)}

    @override
    def run(self) -> dict[str, Any]:
        arrays, provider = self._engine.attend(self.call, self.plan)
        answer: dict[str, Any] = {}
        for name, array in arrays.items():
            result = array.astype(self.call.query.dtype, copy=False)
            answer[name] = _to_rank(result, self.call.rank, merge_heads=name == "output")
        return {**answer, "provider": provider}


def _to_rank(array: Array, rank: int, *, merge_heads: bool) -> Array:
    """A rank-4 result in the shape that the request's rank asks for."""
    if rank == 2:
        matrix: Array = array[0, 0]
        return matrix
    if rank == 3 and merge_heads:
        batch, heads, length, size = array.shape
        return array.transpose(0, 2, 1, 3).reshape(batch, length, heads * size)
    return array
