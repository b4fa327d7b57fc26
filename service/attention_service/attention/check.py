"""A self-check: known cases on this machine's provider against numpy in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from attention_service.attention.engine import Engine
from attention_service.attention.sdpa import AttentionJob
from attention_wire.schemas import AttentionRequest
from attention_wire.tensors import FLOAT_DTYPES, Array

_ALLOWED = {"float16": 1e-2, "bfloat16": 1e-2, "float32": 1e-5, "float64": 1e-12}


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One case: what was computed, where, and its largest error."""

    dtype: str
    options: str
    provider: str
    error: float
    allowed: float

    @property
    def ok(self) -> bool:
        """Whether the error is within what the dtype allows."""
        return self.error <= self.allowed


def check_provider(engine: Engine) -> list[CheckResult]:
    """Run each case in each dtype: plain, causal, masked, grouped heads."""
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal((2, heads, 5, 8)) for heads in (4, 2, 2))
    mask = rng.random((5, 5)) < 0.7
    cases: dict[str, dict[str, object]] = {
        "plain, grouped heads": {},
        "causal": {"is_causal": True},
        "bool mask": {"attn_mask": mask},
        "float mask, causal": {"attn_mask": rng.standard_normal((5, 5)), "is_causal": True},
    }
    results = []
    for dtype, numpy_dtype in FLOAT_DTYPES.items():
        tensors = [tensor.astype(numpy_dtype) for tensor in (query, key, value)]
        names = ("query", "key", "value")
        for options, fields in cases.items():
            request = AttentionRequest.model_validate(
                dict(zip(names, tensors, strict=True)) | fields
            )
            answer = AttentionJob(request, engine).run()
            exact = [tensor.astype(np.float64) for tensor in tensors]
            expected = _reference(exact[0], exact[1], exact[2], fields)
            error = float(np.abs(answer["output"].astype(np.float64) - expected).max())
            provider = str(answer["provider"])
            results.append(CheckResult(dtype, options, provider, error, _ALLOWED[dtype]))
    return results


def _reference(query: Array, key: Array, value: Array, fields: dict[str, object]) -> Array:
    """softmax(QKᵀ/√D + mask)·V in float64, written out."""
    groups = query.shape[1] // key.shape[1]
    key, value = (np.repeat(tensor, groups, axis=1) for tensor in (key, value))
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1])
    mask = np.asarray(fields.get("attn_mask", 0.0))
    scores = np.where(mask, scores, -np.inf) if mask.dtype.kind == "b" else scores + mask
    if fields.get("is_causal"):
        scores = np.where(
            np.tri(scores.shape[-2], scores.shape[-1], dtype=np.bool_), scores, -np.inf
        )
    with np.errstate(invalid="ignore"):
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights = weights / weights.sum(axis=-1, keepdims=True)
    result: Array = np.nan_to_num(weights) @ value
    return result
