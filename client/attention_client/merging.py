"""Exact merging: attention over disjoint parts of the keys, put together.

With the log-sum-exp lse_i of each part's scores, lse = ln Σ exp(lse_i) is that of all keys,
and Σ exp(lse_i − lse)·output_i is their output. The same factors scale weights, and so give
the entropy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias, overload

import numpy as np
import numpy.typing as npt

from attention_client._arrays import tensor
from attention_client.errors import NotReturnedError
from attention_client.results import AttentionResult
from attention_wire.tensors import Array, dtype_name

Pair: TypeAlias = tuple[npt.ArrayLike, npt.ArrayLike]


@overload
def merge(results: Iterable[AttentionResult]) -> AttentionResult: ...


@overload
def merge(results: Iterable[Pair]) -> tuple[Array, Array]: ...


def merge(
    results: Iterable[AttentionResult] | Iterable[Pair],
) -> AttentionResult | tuple[Array, Array]:
    """The result for all keys, of results for the same queries over disjoint parts of them.

    Each part's call has its own keys, values, masks and documents, the ``key_offset`` of its
    first key, and the ``query_offset`` of the whole. Sinks go to one part only.

    Args:
        results: each with ``output`` and ``lse``, all of one shape and dtype; or pairs
            (output, lse) of arrays, such as another kernel gives.

    Returns:
        ``output`` and ``lse`` in the dtypes of the parts, computed in float64. A row that is
        masked in every part has output 0 and lse −∞. ``request_id`` joins those of the parts;
        ``server_timing`` has the longest of each phase. Of pairs, the pair of them.

    Raises:
        TypeError: a part is neither.
        NotReturnedError: a result lacks ``output`` or ``lse``.
        ValueError: there is no result; shapes or dtypes disagree; or an lse is NaN or +∞.

    Example:
        >>> import numpy as np
        >>> from attention_client import merge
        >>> rng = np.random.default_rng(0)
        >>> query, key, value = rng.standard_normal((3, 8, 4), np.float32)
        >>> asked = {"weights": False, "lse": True}
        >>> parts = [
        ...     client.attention(query, key[part], value[part], return_=asked)
        ...     for part in (slice(0, 3), slice(3, 8))
        ... ]
        >>> merge(parts)
        AttentionResult(output=float32[8, 4], lse=float32[8], provider=...)
        >>> whole = client.attention(query, key, value, return_=asked)
        >>> np.allclose(merge(parts).output, whole.output, atol=1e-6)
        True
        >>> output, lse = merge((part.output, part.lse) for part in parts)
    """
    parts: list[AttentionResult | Pair] = list(results)
    if not parts:
        raise ValueError("merge needs at least one result")
    outputs = _arrays(parts, "output")
    lses = _arrays(parts, "lse")
    _check_fit(outputs[0], lses[0])
    lse, shares = _lse_and_shares(lses)
    output = _weighted_sum(outputs, shares)
    told = [part for part in parts if isinstance(part, AttentionResult)]
    return combined(told, {"output": output, "lse": lse}) if told else (output, lse)


def merge_lse(results: Sequence[AttentionResult]) -> AttentionResult:
    """As :func:`merge`, of results without an output."""
    lse, _ = _lse_and_shares(_arrays(results, "lse"))
    return combined(results, {"lse": lse})


def merge_entropy(results: Sequence[AttentionResult], sinks: Array | None) -> Array:
    """The entropy of all keys, of results with ``entropy`` and ``lse``.

    With c_i = exp(lse_i − lse) it is Σ c_i·(entropy_i − W_i·ln c_i), where W_i is the sum of the
    part's weights: 1, less what a sink takes.

    Args:
        results: those of the parts.
        sinks: [Hq], which the first part had; None for none.
    """
    lses = _arrays(results, "lse")
    _, shares = _lse_and_shares(lses)
    total: Array = np.zeros(lses[0].shape, np.float64)
    entropies = _arrays(results, "entropy")
    for part, (entropy, lse, share) in enumerate(zip(entropies, lses, shares, strict=True)):
        seen = share > 0
        kept = seen.astype(np.float64)
        if sinks is not None and part == 0:
            sink = sinks.astype(np.float64)[:, None] - np.where(seen, lse, np.inf)
            kept = -np.expm1(sink.reshape(lse.shape))
        total += share * (entropy - kept * np.log(share, out=np.zeros_like(share), where=seen))
    return total.astype(lses[0].dtype)


def combined(results: Sequence[AttentionResult], arrays: Mapping[str, Array]) -> AttentionResult:
    """A result with these arrays that several calls contributed to."""
    for array in arrays.values():
        array.setflags(write=False)  # as those of an answer
    phases = {phase for result in results for phase in result.server_timing}
    return AttentionResult(
        arrays=arrays,
        module=None,
        provider=", ".join(dict.fromkeys(result.provider for result in results)),
        request_id=", ".join(filter(None, (result.request_id for result in results))) or None,
        server_timing={
            phase: max(result.server_timing.get(phase, 0.0) for result in results)
            for phase in sorted(phases)
        },
    )


def _arrays(results: Sequence[AttentionResult | Pair], name: str) -> list[Array]:
    """One array of each result; all have one shape and dtype."""
    arrays: list[Array] = []
    for index, result in enumerate(results):
        array = _array(result, index, name)
        first = arrays[0] if arrays else array
        if (array.shape, array.dtype) != (first.shape, first.dtype):
            raise ValueError(
                f"results[{index}].{name} is {_described(array)} where results[0].{name} is "
                f"{_described(first)}; parts of one call have the same queries and dtype"
            )
        arrays.append(array)
    return arrays


def _array(result: AttentionResult | Pair, index: int, name: str) -> Array:
    if isinstance(result, AttentionResult):
        try:
            array: Array = getattr(result, name)
        except NotReturnedError as error:
            error.add_note(f"(results[{index}]: only results with output and lse can be merged)")
            raise
        return array
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise TypeError(
            f"results[{index}]: takes results of attention, or pairs (output, lse) of arrays, "
            f"not {type(result).__name__}"
        )
    return tensor(f"results[{index}].{name}", result[("output", "lse").index(name)])


def _check_fit(output: Array, lse: Array) -> None:
    """That an output's rows are those of the lse: [B, Hq, L], or [L] for rank 2."""
    if output.ndim == 3 and lse.ndim == 3:
        batch, heads, length = lse.shape
        fits = output.shape[:2] == (batch, length) and heads > 0 and output.shape[2] % heads == 0
    else:
        fits = lse.shape == output.shape[:-1] and lse.ndim in (1, 3)
    if not fits:
        raise ValueError(
            f"output is {_described(output)}, which does not fit the lse's {_described(lse)}: "
            "they are [B, Hq, L, Dv] or [B, L, Hq·Dv] with [B, Hq, L], or [L, Dv] with [L]"
        )


def _lse_and_shares(lses: Sequence[Array]) -> tuple[Array, list[Array]]:
    """The lse of all keys, and exp(lse_i − lse), what each part has of the softmax."""
    stacked = np.stack(lses).astype(np.float64)
    if not (stacked < np.inf).all():  # NaN is not less either
        raise ValueError("an lse holds NaN or +infinity; it is finite, or -inf for a masked row")
    largest = stacked.max(axis=0)
    # -inf - -inf is NaN: rows that are masked everywhere are shifted by 0.
    shift = np.where(np.isneginf(largest), 0.0, largest)
    exponentials = np.exp(stacked - shift)
    total = exponentials.sum(axis=0)
    seen = total > 0
    shares = np.divide(exponentials, total, out=np.zeros_like(stacked), where=seen)
    lse = np.log(total, out=np.full_like(total, -np.inf), where=seen) + shift
    return lse.astype(lses[0].dtype), list(shares)


def _weighted_sum(outputs: Sequence[Array], shares: Sequence[Array]) -> Array:
    total: Array = np.zeros(outputs[0].shape, np.float64)
    for output, share in zip(outputs, shares, strict=True):
        if output.ndim == 3 and share.ndim == 3:  # [B, L, Hq·Dv]: head by head, Dv columns each
            factor = np.repeat(share.swapaxes(1, 2), output.shape[2] // share.shape[1], axis=2)
        else:
            factor = share[..., None]
        # A row that this part masks adds nothing, whatever its output holds.
        added = np.zeros_like(total)
        np.multiply(output.astype(np.float64), factor, out=added, where=factor > 0)
        total += added
    return total.astype(outputs[0].dtype)


def _described(array: Array) -> str:
    return f"{dtype_name(array)}{list(array.shape)}"
