"""Plain attention as a job: a request over tensors, planned, run and shaped as an answer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Self

from typing_extensions import override

from attention_service.attention.call import AttentionCall, stacked
from attention_service.attention.compute import compute
from attention_service.attention.engine import Engine
from attention_service.attention.job import SMALL_BYTES, SMALL_FLOPS, Fits, Job, Shapes
from attention_service.attention.lanes import never
from attention_service.attention.planner import Plan, answer_arrays, plan
from attention_service.attention.selection import Wants
from attention_service.attention.shapes import Sent
from attention_service.attention.speed import describe
from attention_service.attention.values import Doubtful, NonFinite
from attention_wire.answers import PlanInfo
from attention_wire.schemas import AttentionRequest, Return
from attention_wire.tensors import Array

# What to ask for where a call is too large, from the most that may be wanted down.
_FEW_ROWS = {"start": 0, "stop": 1}
_LESS: tuple[dict[str, Any], ...] = (
    {"weights": {"heads": [0]}},
    {"weights": {"top_k": 8}},
    {"weights": {"heads": [0], "top_k": 8}},
    {"weights": {"heads": [0], "queries": _FEW_ROWS}},
    {"weights": False},
    {"output": False, "weights": {"heads": [0], "top_k": 1}},
    {"output": False, "weights": {"heads": [0], "queries": _FEW_ROWS}},
    {"output": False, "weights": {"heads": [0], "queries": _FEW_ROWS, "top_k": 1}},
)
_LESS_OF_NO_ROWS = tuple(asked for asked in _LESS if "queries" not in (asked["weights"] or {}))


class AttentionJob(Job):
    """Scaled dot-product attention, of one request.

    Args:
        call: the validated call.
        engine: runs the plan.
        sent: how its tensors came; as they are in the call if nothing is said.
    """

    def __init__(self, call: AttentionCall, engine: Engine, sent: Sent | None = None) -> None:
        self.call = call
        self._sent = sent
        self._engine = engine
        self.plan: Plan = self._planned(call)

    @classmethod
    def of(cls, request: AttentionRequest, engine: Engine) -> Self:
        """The job of a parsed request.

        Raises:
            ProblemError: the request's tensors do not fit each other.
        """
        return cls(AttentionCall.from_request(request), engine, Sent.of(request))

    @property
    @override
    def peak_bytes(self) -> int:
        return self.plan.peak_bytes

    @property
    @override
    def answer_shapes(self) -> Shapes:
        return _shapes(self.call)

    @property
    def flops(self) -> int:
        """Floating-point operations that it takes."""
        return sum(cost.flops for cost in self.plan.costs)

    @property
    @override
    def is_small(self) -> bool:
        return self.flops <= SMALL_FLOPS and self.plan.peak_bytes <= SMALL_BYTES

    @property
    @override
    def batch_key(self) -> Hashable | None:
        alike = self.call.alike if self.is_small else None
        return None if alike is None else (AttentionJob, alike)

    @property
    @override
    def batch_bytes(self) -> int:
        return math.prod(self.call.sizes.scores) * self.call.compute_dtype.itemsize

    @property
    @override
    def kernels(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(step.kernel for step in self.plan.steps))

    @override
    def smaller(self, fits: Fits) -> str:
        for asked in _LESS if self.call.sizes.q_length else _LESS_OF_NO_ROWS:
            wants = Wants.of(
                Return.model_validate(asked), self.call.sizes, has_past=self.call.wants.present
            )
            less = replace(self.call, wants=wants)
            if fits(_shapes(less), self._planned(less).peak_bytes):
                return f'{{"return": {json.dumps(asked)}}} would fit.'
        return "Send fewer heads or shorter sequences."

    @override
    def run(self, cancelled: Callable[[], bool] = never) -> dict[str, Any]:
        try:
            arrays, how, call = self._results(cancelled)
        except NonFinite as problem:
            raise problem if self._sent is None else problem.in_what_was(self._sent) from None
        answer = self._answer(arrays, call)
        if call.wants.plan:
            answer["plan"] = self._described(how, call).model_dump()
        return answer

    @classmethod
    @override
    def run_together(
        cls, jobs: Sequence[Self], cancelled: Callable[[], bool] = never
    ) -> list[dict[str, Any]]:
        stack = cls(stacked([job.call for job in jobs]), jobs[0]._engine)
        arrays, _, call = stack._results(cancelled)
        batch = jobs[0].call.sizes.batch
        parts = [slice(index * batch, (index + 1) * batch) for index in range(len(jobs))]
        return [
            job._answer({name: array[part] for name, array in arrays.items()}, call)
            for job, part in zip(jobs, parts, strict=True)
        ]

    def _results(
        self, cancelled: Callable[[], bool]
    ) -> tuple[Mapping[str, Array], Plan, AttentionCall]:
        """The arrays of the answer, in rank 4, and how what was computed."""
        trusted = self.call.trusting()
        if trusted is not None:
            with suppress(Doubtful):
                return self._computed(trusted, cancelled)
        return self._computed(self.call.prepared(), cancelled)

    def _computed(
        self, call: AttentionCall, cancelled: Callable[[], bool]
    ) -> tuple[Mapping[str, Array], Plan, AttentionCall]:
        engine = self._engine
        dtype_changed = call.compute_dtype != self.call.compute_dtype
        how = self._planned(call) if dtype_changed else self.plan
        return compute(call, how, engine, cancelled), how, call

    def _answer(self, arrays: Mapping[str, Array], computed: AttentionCall) -> dict[str, Any]:
        call = self.call
        answer: dict[str, Any] = {}
        for name, array in arrays.items():
            parent, _, member = name.rpartition(".")
            shaped = _to_rank(array, call.rank, name)
            (answer.setdefault(parent, {}) if parent else answer)[member] = shaped
        if call.wants.present:
            answer |= {"present_key": call.key, "present_value": call.value}
        answer["provider"] = self._engine.target(computed.compute_dtype).provider
        return answer

    def _planned(self, call: AttentionCall) -> Plan:
        return plan(call, self._engine.target(call.compute_dtype))

    def explain(self) -> PlanInfo:
        """How the call is run, and what that is predicted to cost."""
        return self._described(self.plan, self.call)

    def _described(self, how: Plan, call: AttentionCall) -> PlanInfo:
        engine = self._engine
        target = engine.target(call.compute_dtype)
        return describe(how, target, call.compute_dtype.name, engine.speed())


def _shapes(call: AttentionCall) -> Shapes:
    return {name: (shape, dtype.name) for name, (shape, dtype) in answer_arrays(call).items()}


def _to_rank(array: Array, rank: int, name: str) -> Array:
    """A rank-4 result in the shape that the request's rank asks for."""
    if rank == 2:
        matrix: Array = array[0, 0]
        return matrix
    if rank == 3 and name == "output":
        batch, heads, length, size = array.shape
        return array.transpose(0, 2, 1, 3).reshape(batch, length, heads * size)
    return array
