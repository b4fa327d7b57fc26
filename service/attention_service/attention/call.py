"""A validated attention call: shapes, dtypes and masks that fit each other.

Inside the service every call has rank 4: query ``[B,Hq,L,D]``, key ``[B,Hkv,S,D]``,
value ``[B,Hkv,S,Dv]``, and a mask of rank 4 that broadcasts to ``[B,Hq,L,S]``. Semantics
are those of the ONNX operator ``Attention``
(https://onnx.ai/onnx/operators/onnx__Attention.html).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite, sqrt
from typing import Any

import numpy as np

from attention_service.attention import values
from attention_service.attention.values import finite_magnitude, magnitude
from attention_wire.problems import Code, ProblemError
from attention_wire.schemas import AttentionRequest, Return
from attention_wire.tensors import Array, dtype_name


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a call, by the letters of the contract."""

    batch: int
    q_num_heads: int
    kv_num_heads: int
    q_length: int
    kv_length: int
    head_size: int
    v_head_size: int

    @property
    def scores(self) -> tuple[int, int, int, int]:
        """``[B,Hq,L,S]``, the shape of the scores and the weights."""
        return (self.batch, self.q_num_heads, self.q_length, self.kv_length)

    @property
    def output(self) -> tuple[int, int, int, int]:
        """``[B,Hq,L,Dv]``, the shape of the output before it takes the query's rank."""
        return (self.batch, self.q_num_heads, self.q_length, self.v_head_size)


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """Scaled dot-product attention, ready to be planned.

    Attributes:
        query: ``[B,Hq,L,D]``, finite.
        key: ``[B,Hkv,S,D]``, finite: rows that no query attends are zeroed where they were not.
        value: ``[B,Hkv,S,Dv]``, finite in the same way.
        attn_mask: None, or bool (true = may attend) or float (added to the scores) of rank 4,
            each dimension that of ``[B,Hq,L,S]`` or 1, the last one S.
        is_causal: query i sees the keys j ≤ i.
        scale: factor on the scores.
        rank: the request's rank, which the answer takes.
        wants: what to compute.
        score_bound: no score before the mask has a larger absolute value, no bias is larger.
    """

    query: Array
    key: Array
    value: Array
    attn_mask: Array | None
    is_causal: bool
    scale: float
    rank: int
    wants: Return
    score_bound: float = 0.0

    @property
    def sizes(self) -> Sizes:
        """The sizes of the call."""
        batch, q_num_heads, q_length, head_size = self.query.shape
        _, kv_num_heads, kv_length, v_head_size = self.value.shape
        return Sizes(batch, q_num_heads, kv_num_heads, q_length, kv_length, head_size, v_head_size)

    @classmethod
    def from_request(cls, request: AttentionRequest) -> AttentionCall:
        """Validate a request's tensors against each other.

        Raises:
            ProblemError: ``invalid_tensor``, ``invalid_field``, ``non_finite`` or ``overflow``,
                naming the field and, where shapes disagree, both shapes.
        """
        rank = _same_rank(request)
        _same_dtype(request)
        query, key, value = _to_rank_4(request, rank)
        _check_shapes(request, query, key, value)
        sizes = (*query.shape[:3], key.shape[2])
        mask = None
        if request.attn_mask is not None:
            mask = fit_mask(request.attn_mask, (sizes[0], sizes[1], sizes[2], sizes[3]))
        scale = request.scale
        call = cls(
            query=query,
            key=key,
            value=value,
            attn_mask=mask,
            is_causal=request.is_causal,
            scale=1 / sqrt(query.shape[-1]) if scale is None else scale,
            rank=rank,
            wants=request.return_,
        )
        return call._with_finite_values()

    def _with_finite_values(self) -> AttentionCall:
        """The call with rows zeroed that none attends, and the bound of its scores."""
        call = self
        if not (isfinite(magnitude(self.key)) and isfinite(magnitude(self.value))):
            attended = values.attended_keys(
                self.attn_mask, is_causal=self.is_causal, shape=self.sizes.scores
            )
            groups = self.sizes.q_num_heads // self.sizes.kv_num_heads
            call = replace(
                self,
                key=values.zero_unattended("key", self.key, attended, groups),
                value=values.zero_unattended("value", self.value, attended, groups),
            )
        scaled_query = finite_magnitude("query", call.query) * abs(call.scale)
        bound = scaled_query * max(1.0, call.sizes.head_size * magnitude(call.key))
        if call.attn_mask is not None and call.attn_mask.dtype.kind != "b":
            bound = max(bound, float(call.attn_mask.max(initial=0)))
        if not bound < values.safe_score(np.float64):
            message = (
                "its scores may overflow float64; send smaller numbers, a smaller scale "
                "or a smaller bias"
            )
            raise ProblemError.of_field("query", message, Code.OVERFLOW)
        return replace(call, score_bound=bound)


def _same_rank(request: AttentionRequest) -> int:
    rank = request.query.ndim
    if rank not in (2, 3, 4):
        raise _invalid(
            "query", f"has rank {rank} (shape {_shape(request.query)}); send rank 2, 3 or 4"
        )
    for name in ("key", "value"):
        tensor: Array = getattr(request, name)
        if tensor.ndim != rank:
            raise _invalid(
                name,
                f"has rank {tensor.ndim} (shape {_shape(tensor)}) where the query has rank {rank} "
                f"(shape {_shape(request.query)}); query, key and value have one rank",
            )
    return rank


def _same_dtype(request: AttentionRequest) -> None:
    for name in ("key", "value"):
        tensor: Array = getattr(request, name)
        if tensor.dtype != request.query.dtype:
            raise _invalid(
                name,
                f"is {dtype_name(tensor)} where the query is {dtype_name(request.query)}; "
                "query, key and value have one dtype",
            )


def _to_rank_4(request: AttentionRequest, rank: int) -> tuple[Array, Array, Array]:
    q_num_heads, kv_num_heads = request.q_num_heads, request.kv_num_heads
    given = [n for n in ("q_num_heads", "kv_num_heads") if getattr(request, n) is not None]
    if rank != 3:
        if given:
            raise ProblemError.of_field(
                given[0], f"goes with rank 3 only; the query's shape {_shape(request.query)} "
                "says its heads by itself",
            )  # fmt: skip
        tensors = (request.query, request.key, request.value)
        if rank == 4:
            return tensors
        query, key, value = (tensor[None, None] for tensor in tensors)
        return query, key, value
    if q_num_heads is None or kv_num_heads is None:
        name = "q_num_heads" if q_num_heads is None else "kv_num_heads"
        raise ProblemError.of_field(
            name, f"is needed to split the heads of rank-3 tensors such as {_shape(request.query)}",
            Code.MISSING_FIELD,
        )  # fmt: skip
    return (
        split_heads("query", request.query, "q_num_heads", q_num_heads),
        split_heads("key", request.key, "kv_num_heads", kv_num_heads),
        split_heads("value", request.value, "kv_num_heads", kv_num_heads),
    )


def split_heads(name: str, tensor: Array, heads_field: str, num_heads: int) -> Array:
    """``[B,L,H·D]`` as ``[B,H,L,D]``, a view."""
    batch, length, width = tensor.shape
    if width % num_heads:
        raise _invalid(
            name,
            f"has {width} columns (shape {_shape(tensor)}), which {heads_field}={num_heads} "
            "does not divide",
        )
    split = tensor.reshape(batch, length, num_heads, width // num_heads)
    return split.transpose(0, 2, 1, 3)


def _check_shapes(request: AttentionRequest, query: Array, key: Array, value: Array) -> None:
    """That rank-4 query, key and value fit each other."""
    batch, q_num_heads, _, head_size = query.shape
    expected = [
        ("key", key, 0, batch, "query", "one batch size B"),
        ("key", key, 3, head_size, "query", "one head size D"),
        ("value", value, 0, batch, "query", "one batch size B"),
        ("value", value, 1, key.shape[1], "key", "one number of heads Hkv"),
        ("value", value, 2, key.shape[2], "key", "one length S"),
    ]
    for name, tensor, axis, size, other, rule in expected:
        if tensor.shape[axis] != size:
            raise _invalid(
                name,
                f"has shape {_shape(getattr(request, name))}, which does not fit the {other}'s "
                f"{_shape(getattr(request, other))}: they have {rule}",
            )
    if head_size == 0 or q_num_heads == 0 or key.shape[1] == 0:
        name = "query" if head_size == 0 or q_num_heads == 0 else "key"
        raise _invalid(
            name,
            f"has shape {_shape(getattr(request, name))}: it needs at least one head and a "
            "head size of 1",
        )
    if q_num_heads % key.shape[1]:
        raise _invalid(
            "key",
            f"has {key.shape[1]} heads (shape {_shape(request.key)}), which do not divide the "
            f"query's {q_num_heads} (shape {_shape(request.query)})",
        )


def fit_mask(mask: Array, scores: tuple[int, int, int, int]) -> Array:
    """A mask as rank 4 that broadcasts to the scores, its last dimension padded to S.

    Args:
        mask: bool or float, of rank 1 to 4.
        scores: ``[B,Hq,L,S]``.

    Raises:
        ProblemError: the shapes do not fit, or a float mask holds NaN or +infinity.
    """
    given = _shape(mask)
    if not 1 <= mask.ndim <= 4:
        raise _invalid("attn_mask", f"has rank {mask.ndim} (shape {given}); send rank 1 to 4")
    mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    fits = all(size in (1, full) for size, full in zip(mask.shape[:3], scores[:3], strict=True))
    if not fits or mask.shape[3] > scores[3]:
        raise _invalid(
            "attn_mask",
            f"has shape {given}, which does not broadcast from the right to [B,Hq,L,S] = "
            f"{list(scores)}",
        )
    if mask.dtype.kind != "b":
        values.check_bias("attn_mask", mask)
    missing = scores[3] - mask.shape[3]
    if missing:
        fill: Any = False if mask.dtype.kind == "b" else -np.inf
        mask = np.pad(mask, ((0, 0), (0, 0), (0, 0), (0, missing)), constant_values=fill)
    return mask


def _shape(tensor: Array) -> list[int]:
    return list(tensor.shape)


def _invalid(name: str, message: str) -> ProblemError:
    return ProblemError.of_field(name, message, Code.INVALID_TENSOR)
