"""What the elements of a call's tensors may be.

A query is finite. A key or value row may hold NaN or infinity only if no query attends it,
and then counts as zero: 0·NaN is NaN, so a padding row would poison every output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from attention_service.attention.shapes import Sent
from attention_wire.problems import Code, FieldProblem, ProblemError
from attention_wire.tensors import Array, dtype_name


class NonFinite(ProblemError):
    """A tensor holds NaN or infinity where it may not.

    Args:
        name: the tensor.
        place: of the first such element.
        shape: of the tensor.
        found: that element.
        cure: what to do about it.
    """

    def __init__(
        self, name: str, place: Sequence[int], shape: Sequence[int], found: float, cure: str
    ) -> None:
        where = ",".join(map(str, place))
        what, past = "NaN", ""
        if not math.isnan(found):
            what, past = "infinity", ", or a number past the range of its dtype (lists are float32)"
        message = f"holds {what} at [{where}] of its shape {list(shape)}{past}; {cure}"
        super().__init__(
            Code.NON_FINITE, f"{name}: {message}", [FieldProblem(loc=(name,), msg=message)]
        )
        self._name, self._place, self._found, self._cure = name, place, found, cure

    def in_what_was(self, sent: Sent) -> NonFinite:
        """The same, told of the tensor as it was sent."""
        name, place = sent.place(self._name, self._place)
        return NonFinite(name, place, sent.shapes[name], self._found, self._cure)


class Doubtful(Exception):
    """A result shows that a tensor may hold what a call may not, so it has to be looked at."""


def magnitude(tensor: Array) -> float:
    """The largest absolute value, NaN or infinity where the tensor holds one; 0 if empty."""
    if tensor.size == 0:
        return 0.0
    # Two reductions without a temporary; both carry a NaN through.
    return max(abs(float(tensor.min())), abs(float(tensor.max())))


def bound(tensor: Array) -> float:
    """At least the largest absolute value; NaN or infinity where the tensor holds one.

    Its Euclidean norm, which takes one pass where the exact value takes two. Of numbers whose
    squares are past the range it is infinity, so an infinite bound shows nothing.
    """
    flat = tensor.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        return math.sqrt(float(np.dot(flat, flat)))


def finite_magnitude(name: str, tensor: Array) -> float:
    """The largest absolute value of a tensor that may hold neither NaN nor infinity.

    Raises:
        ProblemError: ``non_finite``, with the first such element's place.
    """
    largest = magnitude(tensor)
    if not math.isfinite(largest):
        raise _non_finite(name, tensor, np.isfinite(tensor), "send finite numbers")
    return largest


def safe_score(dtype: type[np.floating[Any]]) -> float:
    """A bound on scores below which a softmax in this dtype is exact to its rounding.

    Neither the score nor its sum with a bias can overflow: next to the largest float, whose
    negative many callers mask with, a score below this is lost in rounding.
    """
    info = np.finfo(dtype)
    return float(info.max) * float(info.eps) / 4


# Times less than this, what underflows in float32 (2⁻¹²⁶) is lost in the rounding of any score.
MOST_FACTOR = 2.0**96


def in_float32(factor: float) -> bool:
    """Whether a factor stays one in float32: past its range 0·∞ and 0/0 would follow."""
    info = np.finfo(np.float32)
    return factor == 0 or float(info.tiny) <= abs(factor) <= float(info.max)


def underflows(query: Array, scale: float) -> bool:
    """Whether an element that is not 0 is subnormal in float32, as it is or scaled."""
    elements = np.abs(query) * min(1.0, abs(scale))
    return bool(((elements > 0) & (elements < np.finfo(np.float32).tiny)).any())


def check_bias(name: str, bias: Array) -> float:
    """The largest of some logits, which may hold −infinity, but neither NaN nor +infinity.

    Raises:
        ProblemError: ``non_finite``.
    """
    if bias.size == 0:
        return 0.0
    largest = float(bias.max())  # carries a NaN through
    if not largest < math.inf:
        allowed = np.isfinite(bias) | (bias == -np.inf)
        raise _non_finite(name, bias, allowed, "a bias is finite, or -Infinity to mask")
    return largest


def zero_unattended(name: str, tensor: Array, attended: Array, groups: int) -> Array:
    """The tensor with its non-finite rows zeroed, once no query attends any of them.

    Args:
        name: the field, for the message.
        tensor: ``[B,Hkv,S,D]``.
        attended: bool, broadcasts to ``[B,Hq,S]``.
        groups: query heads for each key head.

    Raises:
        ProblemError: ``non_finite``: a query may attend such a row.
    """
    finite: Array = np.isfinite(tensor)
    bad = np.asarray(~finite.all(axis=-1))
    if not bad.any():
        return tensor
    _, kv_num_heads, length, _ = tensor.shape
    by_head = np.broadcast_to(attended, (attended.shape[0], kv_num_heads * groups, length))
    seen = by_head.reshape(attended.shape[0], kv_num_heads, groups, length).any(axis=2)
    if (bad & seen).any():
        allowed = finite | ~(bad & seen)[..., None]
        cure = "mask that row for every query, or send numbers"
        raise _non_finite(name, tensor, allowed, cure)
    return np.where(bad[..., None], tensor.dtype.type(0), tensor)


def check_result(name: str, tensor: Array) -> None:
    """Refuse to answer numbers that overflowed on the way through a learned module.

    Raises:
        ProblemError: ``overflow``.
    """
    if not math.isfinite(magnitude(tensor)):
        message = (
            f"the {name} that it leads to is past the range of {dtype_name(tensor)}; send smaller "
            "numbers, or a dtype with more range"
        )
        raise ProblemError.of_field("query", message, Code.OVERFLOW)


def _non_finite(name: str, tensor: Array, allowed: Array, cure: str) -> NonFinite:
    place = tuple(map(int, np.unravel_index(int(np.argmin(allowed)), allowed.shape)))
    return NonFinite(name, place, tensor.shape, float(tensor[place]), cure)
