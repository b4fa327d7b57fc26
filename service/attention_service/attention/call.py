"""A validated attention call: shapes, dtypes and masks that fit each other.

Inside the service every call has rank 4: query ``[B,Hq,L,D]``, key ``[B,Hkv,T,D]``,
value ``[B,Hkv,T,Dv]``, the past's keys and values before the new ones. Semantics are those
of the ONNX operator ``Attention`` (https://onnx.ai/onnx/operators/onnx__Attention.html),
with the additions that docs/attention.md describes.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from math import isfinite, sqrt
from typing import Any

import numpy as np

from attention_service.attention import values
from attention_service.attention.mask_fields import masking
from attention_service.attention.masking import Masking
from attention_service.attention.selection import Wants
from attention_service.attention.shapes import Sizes, check_shape, to_rank_4, with_past
from attention_service.attention.values import finite_magnitude, magnitude
from attention_wire.problems import Code, ProblemError
from attention_wire.schemas import AttentionRequest
from attention_wire.tensors import Array

_DOUBLE = frozenset({11, "float64"})
# So many keys take longer to look at than all else that a small call needs.
_MANY_ELEMENTS = 2**18


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """Scaled dot-product attention, ready to be planned.

    Attributes:
        query: ``[B,Hq,L,D]``.
        key: ``[B,Hkv,T,D]``.
        value: ``[B,Hkv,T,Dv]``.
        masking: what masks and biases the scores.
        scale: factor on the scores.
        dtype: that of the answer's tensors.
        compute_dtype: float32 or float64, what the call is computed in.
        rank: the request's rank, which the answer takes.
        wants: what to compute.
        softcap: bound of the scores, or 0 for none.
        sinks: None, or float64 ``[Hq]``: a logit in each head's denominator.
        is_trusted: whether tiles have to look whether keys and values are finite.
    """

    query: Array
    key: Array
    value: Array
    masking: Masking
    scale: float
    dtype: np.dtype[Any]
    compute_dtype: np.dtype[Any]
    rank: int
    wants: Wants
    # Options, whose defaults are what a plain call has.
    softcap: float = 0.0
    sinks: Array | None = None
    # How it is run.
    is_trusted: bool = False

    @property
    def sizes(self) -> Sizes:
        """The sizes of the call."""
        return self.masking.sizes

    @property
    def alike(self) -> Hashable | None:
        """Equal for calls that differ in the numbers of query, key and value alone.

        They are one call of all their batches, see :func:`stacked`. None for a call that is
        like no other: what is a tensor beside these three has its own numbers.
        """
        wants, seen = self.wants, self.masking.alike
        if seen is None or wants.plan or wants.present or self.sizes.batch == 0:
            return None
        rest = tuple(getattr(self, name) for name in _BESIDE_TENSORS)
        if any(isinstance(option, np.ndarray) for option in rest):
            return None
        return self.query.shape, self.key.shape, self.value.shape, seen, rest

    @property
    def is_plain(self) -> bool:
        """Whether no option makes it more than softmax(scale·QKᵀ + mask)·V."""
        options = ((getattr(self, name), default) for name, default in _OPTIONS.items())
        return all(
            not isinstance(option, np.ndarray) and option == default for option, default in options
        )

    @classmethod
    def from_request(cls, request: AttentionRequest) -> AttentionCall:
        """Validate a request's tensors against each other, by their shapes alone.

        Raises:
            ProblemError: ``invalid_tensor``, ``invalid_field`` or ``missing_field``, naming the
                field and, where shapes disagree, both shapes.
        """
        query, new_key, new_value = to_rank_4(request)
        key, value = with_past(request, new_key, new_value)
        batch, q_num_heads, q_length, head_size = query.shape
        _, kv_num_heads, kv_length, v_head_size = value.shape
        sizes = Sizes(batch, q_num_heads, kv_num_heads, q_length, kv_length, head_size, v_head_size)
        past_length = key.shape[2] - new_key.shape[2]
        sinks = request.sinks
        check_shape("sinks", sinks, [sizes.q_num_heads], "[Hq]")
        in_double = query.dtype == np.float64 or request.softmax_precision in _DOUBLE
        return cls(
            query=query,
            key=key,
            value=value,
            masking=masking(request, sizes, past_length),
            scale=1 / sqrt(sizes.head_size) if request.scale is None else request.scale,
            softcap=request.softcap,
            sinks=None if sinks is None else sinks.astype(np.float64),
            dtype=query.dtype,
            compute_dtype=np.dtype(np.float64 if in_double else np.float32),
            rank=request.query.ndim,
            wants=Wants.of(request.return_, sizes, has_past=request.past_key is not None),
        )

    def prepared(self) -> AttentionCall:
        """The call as it is computed: contiguous, in its compute dtype, and finite.

        Rows of key and value that no query attends are zeroed where they were not finite.
        Where float32 could overflow on the way, does not hold the scale or the softcap, or would
        show what underflows in it, float64 takes its place.

        Raises:
            ProblemError: ``non_finite`` or ``overflow``.
        """
        call, bias = self._cast(), self._largest_bias()
        if not (isfinite(magnitude(call.key)) and isfinite(magnitude(call.value))):
            attended = self.masking.attended()
            groups = self.sizes.groups
            call = replace(
                call,
                key=values.zero_unattended("key", call.key, attended, groups),
                value=values.zero_unattended("value", call.value, attended, groups),
            )
        query, key = finite_magnitude("query", call.query), magnitude(call.key)
        if not self._largest_score(query, key, bias) < values.safe_score(np.float64):
            raise ProblemError.of_field(
                "query",
                "its scores may overflow float64; send smaller numbers, a smaller scale or a "
                "smaller bias",
                Code.OVERFLOW,
            )
        if call.compute_dtype == np.float32 and not self._is_safe(query, key, bias):
            return replace(call, compute_dtype=np.dtype(np.float64))  # tiles cast their parts
        return call

    def trusting(self) -> AttentionCall | None:
        """What :meth:`prepared` gives for a call whose numbers are all right, at once.

        :meth:`look` may run beside the tiles, which see by their results whether values are
        finite and raise :class:`values.Doubtful` if not.

        Returns:
            None where the compute dtype does not hold the scale or the softcap, or where the
            output is not wanted: nothing would show what the values are.
        """
        if not self.can_be_trusted:
            return None
        return replace(self._cast(), is_trusted=True)

    @property
    def can_be_trusted(self) -> bool:
        """Whether the output shows what the values are, and the compute dtype holds the factors."""
        return self.wants.output and self.sizes.v_head_size > 0 and self._holds_factors

    def look(self) -> None:
        """Look at what the results of a call that is trusted do not show.

        Raises:
            Doubtful: more than a look is needed.
            ProblemError: ``non_finite``.
        """
        bias = self._largest_bias()
        # No key makes more of a query's element than its score shows, unless that underflows.
        are_shown = self.shows_keys and not values.underflows(self.query, self.scale)
        key = 0.0 if are_shown else values.bound(self.key)
        if not (isfinite(key) and self._is_safe(values.bound(self.query), key, bias)):
            raise values.Doubtful

    @property
    def shows_keys(self) -> bool:
        """Whether a call that is trusted sees by its scores that its keys are finite.

        Few rows have fewer scores than keys have elements. It takes a graph of its own, which
        small keys are not worth.
        """
        sizes, wants = self.sizes, self.wants
        are_fewer = 2 * sizes.q_length * sizes.groups <= sizes.head_size
        is_worth = self.key.size >= _MANY_ELEMENTS
        return wants.output and wants.scores is None and are_fewer and is_worth

    def _largest_bias(self) -> float:
        masked, slopes, sinks = self.masking.mask, self.masking.slopes, self.sinks
        bias = 0.0
        if masked is not None and masked.dtype.kind != "b":
            bias = max(0.0, values.check_bias("attn_mask", masked))
        if sinks is not None:
            bias = max(bias, values.check_bias("sinks", sinks))
        if slopes is not None:
            bias += finite_magnitude("alibi_slopes", slopes) * self._farthest()
        return bias

    def _largest_score(self, query: float, key: float, bias: float) -> float:
        # The query is scaled before the product, so it alone may not overflow either.
        return query * abs(self.scale) * max(1.0, self.sizes.head_size * key) + bias

    @property
    def _holds_factors(self) -> bool:
        return self.compute_dtype == np.float64 or (
            values.in_float32(self.scale)
            and values.in_float32(self.softcap)
            and max(abs(self.scale), self.softcap) <= values.MOST_FACTOR
        )

    def _is_safe(self, query: float, key: float, bias: float) -> bool:
        """Whether nothing can overflow in the compute dtype, and nothing shows that underflows."""
        if not self._holds_factors:
            return False
        if self.compute_dtype == np.float32:
            # What an element of the query, or of a key, is multiplied by until it is a score.
            scale = abs(self.scale)
            factor = self.sizes.head_size * max(max(1.0, scale) * key, scale * query)
            if not factor <= values.MOST_FACTOR:
                return False
        largest = self._largest_score(query, key, bias)
        return largest < values.safe_score(self.compute_dtype.type)

    def _cast(self) -> AttentionCall:
        return replace(
            self,
            query=np.ascontiguousarray(self.query, self.compute_dtype),
            key=np.ascontiguousarray(self.key, self.compute_dtype),
            value=np.ascontiguousarray(self.value, self.compute_dtype),
        )

    def _farthest(self) -> float:
        """The largest distance between a query and a key, in positions."""
        queries, keys = self.masking.query_positions, self.masking.key_positions
        if queries.size == 0 or keys.size == 0:
            return 0.0
        return float(max(queries.max() - keys[0], keys[-1] - queries.min(), 0))


_TENSORS = ("query", "key", "value", "masking")
_HOW = ("is_trusted",)
_BESIDE_TENSORS = tuple(field.name for field in fields(AttentionCall) if field.name not in _TENSORS)
_OPTIONS = {
    field.name: field.default
    for field in fields(AttentionCall)
    if field.default is not MISSING and field.name not in _HOW
}


def stacked(calls: Sequence[AttentionCall]) -> AttentionCall:
    """Calls that are alike as one of all their batches.

    Args:
        calls: at least one.
    """
    first = calls[0]
    sizes = first.sizes._replace(batch=first.sizes.batch * len(calls))
    return replace(
        first,
        query=np.concatenate([call.query for call in calls]),
        key=np.concatenate([call.key for call in calls]),
        value=np.concatenate([call.value for call in calls]),
        masking=replace(first.masking, sizes=sizes),
    )
