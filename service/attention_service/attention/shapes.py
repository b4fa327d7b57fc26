"""Shapes: the tensors of a request, of rank 2, 3 or 4, as rank 4 that fits together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import NamedTuple

import numpy as np

from attention_wire.problems import Code, FieldProblem, ProblemError
from attention_wire.schemas import AttentionRequest
from attention_wire.tensors import Array, dtype_name

# Where a size is 0 the others take no bytes to send, but rows and heads are still gone over.
MOST_BESIDE_ZERO = 2**22
_SEQUENCES = ("query", "key", "value", "past_key", "past_value")
_FLOATS = (*_SEQUENCES, "attn_mask", "sinks", "alibi_slopes")


class Sizes(NamedTuple):
    """The sizes of a call, by the letters of the contract."""

    batch: int
    q_num_heads: int
    kv_num_heads: int
    q_length: int
    kv_length: int
    """T: the keys of the past and the new ones."""
    head_size: int
    v_head_size: int

    @property
    def groups(self) -> int:
        """Query heads for each key head."""
        return self.q_num_heads // self.kv_num_heads

    @property
    def scores(self) -> tuple[int, int, int, int]:
        """``[B,Hq,L,T]``, the shape of the scores and the weights."""
        return (self.batch, self.q_num_heads, self.q_length, self.kv_length)


class Sent(NamedTuple):
    """How the tensors of a call were sent, before they were brought to rank 4.

    Attributes:
        shapes: name → shape.
        num_heads: name → heads, of those with their heads side by side, ``[B,L,H·D]``.
    """

    shapes: Mapping[str, tuple[int, ...]]
    num_heads: Mapping[str, int]

    @classmethod
    def of(cls, request: AttentionRequest) -> Sent:
        """How a request's were."""
        tensors = ((name, getattr(request, name)) for name in _FLOATS)
        shapes = {name: tensor.shape for name, tensor in tensors if tensor is not None}
        of_keys = request.kv_num_heads or 1
        return cls(shapes, {"query": request.q_num_heads or 1, "key": of_keys, "value": of_keys})

    def place(self, name: str, place: Sequence[int]) -> tuple[str, Sequence[int]]:
        """Which tensor an element of a call's was sent in, and where in that it stood."""
        past = self.shapes.get(f"past_{name}")
        if past is not None:
            batch, head, row, column = place
            if row < past[2]:
                return f"past_{name}", place
            place = batch, head, row - past[2], column
        shape = self.shapes[name]
        if name in self.num_heads and len(shape) == 3:
            batch, head, row, column = place
            return name, (batch, row, head * (shape[2] // self.num_heads[name]) + column)
        return name, place[len(place) - len(shape) :]


def invalid(name: str, message: str) -> ProblemError:
    """The problem of a tensor that does not fit."""
    return ProblemError.of_field(name, message, Code.INVALID_TENSOR)


def to_rank_4(request: AttentionRequest) -> tuple[Array, Array, Array]:
    """Query, key and value as rank 4, views of what came in, once they fit each other.

    Raises:
        ProblemError: ``invalid_tensor``, ``invalid_field`` or ``missing_field``, naming the
            field and, where shapes disagree, both shapes.
    """
    rank = _same_rank(request)
    for name in _SEQUENCES:
        check_empty(name, getattr(request, name))
        _check_dtype(name, getattr(request, name), request.query)
    query, key, value = _split(request, rank)
    _check_sizes(request, query, key, value)
    return query, key, value


def with_past(request: AttentionRequest, key: Array, value: Array) -> tuple[Array, Array]:
    """Key and value with the past before them, ``[B,Hkv,T,D]`` and ``[B,Hkv,T,Dv]``.

    Raises:
        ProblemError: only one of the two is given, or a shape does not fit.
    """
    past_key, past_value = request.past_key, request.past_value
    if past_key is None and past_value is None:
        return key, value
    if past_key is None or past_value is None:
        name = "past_key" if past_key is None else "past_value"
        raise ProblemError.of_field(
            name, "is missing: past_key and past_value go together", Code.MISSING_FIELD
        )
    if request.nonpad_kv_seqlen is not None:
        raise ProblemError.of_field(
            "nonpad_kv_seqlen", "does not go with a past: send the keys whole, or leave it out"
        )
    for name, past, new in (("past_key", past_key, key), ("past_value", past_value, value)):
        if past.ndim != 4 or (*past.shape[:2], past.shape[3]) != (*new.shape[:2], new.shape[3]):
            batch, heads, _, size = new.shape
            raise invalid(
                name,
                f"has shape {list(past.shape)}, where [B,Hkv,P,D] = [{batch}, {heads}, P, {size}] "
                f"goes before the {name.removeprefix('past_')}",
            )
    if past_key.shape[2] != past_value.shape[2]:
        raise invalid(
            "past_value",
            f"has shape {list(past_value.shape)} and past_key {list(past_key.shape)}: they have "
            "one length P",
        )
    return np.concatenate((past_key, key), axis=2), np.concatenate((past_value, value), axis=2)


def check_shape(name: str, tensor: Array | None, expected: Sequence[int], letters: str) -> None:
    """Refuse a tensor of another shape.

    Raises:
        ProblemError: ``invalid_tensor`` with both shapes.
    """
    if tensor is not None and tensor.shape != tuple(expected):
        raise invalid(
            name, f"has shape {list(tensor.shape)}, where {letters} = {list(expected)} is taken"
        )


def check_empty(name: str, tensor: Array | None) -> None:
    """Refuse a tensor without elements whose other sizes would cost time and memory.

    Raises:
        ProblemError: ``invalid_tensor``.
    """
    if tensor is None or tensor.size:
        return
    if prod(size or 1 for size in tensor.shape) > MOST_BESIDE_ZERO:
        raise invalid(
            name,
            f"has shape {list(tensor.shape)}: where one size is 0, the others may multiply to "
            f"{MOST_BESIDE_ZERO} at most",
        )


def _same_rank(request: AttentionRequest) -> int:
    rank = request.query.ndim
    if rank not in (2, 3, 4):
        raise invalid(
            "query", f"has rank {rank} (shape {list(request.query.shape)}); send rank 2, 3 or 4"
        )
    for name in ("key", "value"):
        tensor: Array = getattr(request, name)
        if tensor.ndim != rank:
            raise invalid(
                name,
                f"has rank {tensor.ndim} (shape {list(tensor.shape)}) where the query has rank "
                f"{rank} (shape {list(request.query.shape)}); query, key and value have one rank",
            )
    return rank


def _check_dtype(name: str, tensor: Array | None, query: Array) -> None:
    if tensor is not None and tensor.dtype != query.dtype:
        raise invalid(
            name,
            f"is {dtype_name(tensor)} where the query is {dtype_name(query)}; "
            "query, key and value have one dtype",
        )


def _split(request: AttentionRequest, rank: int) -> tuple[Array, Array, Array]:
    q_num_heads, kv_num_heads = request.q_num_heads, request.kv_num_heads
    if rank == 3:
        if q_num_heads is None or kv_num_heads is None:
            message = (
                f"is needed to split the heads of rank-3 tensors, [B,L,H·D] = "
                f"{list(request.query.shape)}; send heads that are split already as rank 4"
            )
            counts = {"q_num_heads": q_num_heads, "kv_num_heads": kv_num_heads}
            missing = [name for name, count in counts.items() if count is None]
            raise ProblemError.of_fields(
                [FieldProblem(loc=(name,), msg=message) for name in missing], Code.MISSING_FIELD
            )
        return (
            split_heads("query", request.query, "q_num_heads", q_num_heads),
            split_heads("key", request.key, "kv_num_heads", kv_num_heads),
            split_heads("value", request.value, "kv_num_heads", kv_num_heads),
        )
    given = [n for n in ("q_num_heads", "kv_num_heads") if getattr(request, n) is not None]
    if given:
        raise ProblemError.of_field(
            given[0],
            f"goes with rank 3 only; the query's shape {list(request.query.shape)} says its heads "
            "by itself",
        )
    if rank == 4:
        return request.query, request.key, request.value
    return request.query[None, None], request.key[None, None], request.value[None, None]


def split_heads(name: str, tensor: Array, heads_field: str, num_heads: int) -> Array:
    """``[B,L,H·D]`` as ``[B,H,L,D]``, a view."""
    batch, length, width = tensor.shape
    if width % num_heads:
        raise invalid(
            name,
            f"has {width} columns (shape {list(tensor.shape)}), which {heads_field}={num_heads} "
            "does not divide",
        )
    split = tensor.reshape(batch, length, num_heads, width // num_heads)
    return split.transpose(0, 2, 1, 3)


def _check_sizes(request: AttentionRequest, query: Array, key: Array, value: Array) -> None:
    """That rank-4 query, key and value fit each other."""
    misfit = _misfit(request, query, key, value)
    if misfit is None:
        return
    name, message = misfit
    swapped = (tensor.swapaxes(1, 2) for tensor in (query, key, value))
    if request.query.ndim == 4 and _misfit(request, *swapped) is None:
        message += "; heads are axis 1, [B,H,L,D]: of tensors that are [B,L,H,D] swap axes 1 and 2"
    raise invalid(name, message)


def _misfit(
    request: AttentionRequest, query: Array, key: Array, value: Array
) -> tuple[str, str] | None:
    """The first of the rank-4 tensors that does not fit, and why."""
    sent = {name: list(getattr(request, name).shape) for name in ("query", "key", "value")}
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
            return name, (
                f"has shape {sent[name]}, which does not fit the {other}'s {sent[other]}: they "
                f"have {rule}"
            )
    if head_size == 0 or q_num_heads == 0 or key.shape[1] == 0:
        name = "query" if head_size == 0 or q_num_heads == 0 else "key"
        return name, f"has shape {sent[name]}: it needs at least one head and a head size of 1"
    if q_num_heads % key.shape[1]:
        return "key", (
            f"has {key.shape[1]} heads (shape {sent['key']}), which do not divide the query's "
            f"{q_num_heads} (shape {sent['query']})"
        )
    return None
