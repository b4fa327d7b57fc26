"""What notebooks show of a result: which heads, and under which caption."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from attention_client import _heads, _html
from attention_client._html import Panel
from attention_wire.answers import PlanInfo
from attention_wire.tensors import Array

if TYPE_CHECKING:
    from attention_client.results import AttentionResult, TopK
    from attention_client.text_results import TextAttention

# A layer and a head, or a batch element and a head; None: the mean of all.
Choice: TypeAlias = tuple[int | None, int | None]


def text_html(result: TextAttention) -> str:
    """A text's result: its weights, or else their largest, a rollout or a flow."""
    labels = result._shown_labels()
    words = ~np.asarray(result._special(), bool)
    row_labels = result._row_labels()

    def head(choice: Choice) -> Panel:
        weights = result._selected(*choice).mean((0, 1), dtype=np.float64)
        return _html.matrix(result._caption(*choice), weights, row_labels, labels, words)

    def top_k(choice: Choice) -> Panel:
        parts = _parts(result.top_k, choice)
        return _html.largest(result._caption(*choice), *parts, row_labels, labels)

    def up_to_layer(name: str, choice: Choice) -> Panel:
        layer = choice[0] or 0
        weights = result.arrays[name][layer].astype(np.float64)
        caption = f"{name} up to layer {result.layers[layer]}"
        return _html.matrix(caption, weights, labels, labels, words)

    makers: dict[str, Callable[[Choice], Panel]] = {
        "weights": head,
        "weights.indices": top_k,
        "rollout": partial(up_to_layer, "rollout"),
        "flow": partial(up_to_layer, "flow"),
    }
    for name, make in makers.items():
        array = result.arrays.get(name)
        if array is not None and array.size:
            outer, inner = array.shape[0], array.shape[1] if name.startswith("weights") else 1
            is_whole = name == "weights"
            cure = "plot(layer=…, head=…) draws any, and " if is_whole else ""
            cure += "of a call for fewer layers and heads each can be chosen here"
            return _shown(repr(result), make, outer, inner, cure, with_mean=is_whole)
    return _html.fragment(repr(result))


def attention_html(result: AttentionResult, plan: PlanInfo | None) -> str:
    """A result over tensors: its weights or their largest, and the plan."""
    details = "" if plan is None else _plan(plan)
    weights = result.arrays.get("weights")
    if weights is not None and weights.size:
        outer, inner = weights.shape[:2] if weights.ndim == 4 else (1, 1)

        def head(choice: Choice) -> Panel:
            matrix, caption = attention_head(weights, *choice)
            rows, keys = ([str(number) for number in range(size)] for size in matrix.shape)
            return _html.matrix(caption, matrix, rows, keys, np.ones(len(keys), bool))

        cure = "plot(head=…, batch=…) draws any, and of a call for fewer each can be chosen here"
        return _shown(repr(result), head, outer, inner, cure, details=details)
    if "weights.indices" in result.arrays:
        return top_k_html(result.top_k, repr(result), details)
    return _html.fragment(repr(result), details=details)


def top_k_html(top: TopK, summary: str, details: str = "") -> str:
    """The largest weights of a call over tensors."""
    if not top.indices.size:
        return _html.fragment(summary, details=details)
    outer, inner = top.indices.shape[:2] if top.indices.ndim == 4 else (1, 1)

    def head(choice: Choice) -> Panel:
        is_one = top.indices.ndim == 2
        parts = (top.indices, top.values, top.rest) if is_one else _parts(top, choice)
        rows = [str(number) for number in range(len(parts[0]))]
        caption = "weights" if is_one else f"[{choice[0] or 0}, {choice[1] or 0}] of the weights"
        return _html.largest(caption, *parts, rows, None)

    cure = "of a call for fewer each can be chosen here"
    return _shown(summary, head, outer, inner, cure, with_mean=False, details=details)


def attention_head(weights: Array, batch: int | None, head: int | None) -> tuple[Array, str]:
    """One matrix of a call over tensors, and what it is.

    Args:
        weights: [B, H, L, T] or [L, T].
        batch: which element of the batch; the mean of all by default.
        head: which head; the mean of all by default.

    Returns:
        float64 [L, T], and a caption.

    Raises:
        IndexError: there are not so many.
    """
    array = weights if weights.ndim == 4 else weights[None, None]
    axes = ("batch element", batch, array.shape[0]), ("head", head, array.shape[1])
    places = tuple(_heads.place(*axis) for axis in axes)
    matrix: Array = array[places].mean((0, 1), dtype=np.float64)
    if weights.ndim == 2:
        return matrix, "weights"
    return matrix, ", ".join(_heads.named(name, index, range(n)) for name, index, n in axes)


# --- Which heads -----------------------------------------------------------------------


def _shown(
    summary: str,
    make: Callable[[Choice], Panel],
    outer: int,
    inner: int,
    cure: str,
    *,
    with_mean: bool = True,
    details: str = "",
) -> str:
    """As many heads as there is room for; where that is not all, a line says how to see them."""

    def panels(choices: Sequence[Choice]) -> list[Panel]:
        return [make(choice) for choice in choices]

    count = outer * inner
    note = f"to keep notebooks small, not each of {count} is shown; {cure}"
    groups = _groups(outer, inner, with_mean=with_mean)
    choices = [("" if len(group) >= count else note, partial(panels, group)) for group in groups]
    return _html.fragment(summary, choices, details)


def _groups(outer: int, inner: int, *, with_mean: bool) -> list[list[Choice]]:
    """What could be shown, the most detailed first: every head, every layer's mean, one."""
    first: list[Choice] = [(None, None)] if with_mean and outer * inner > 1 else []
    last: list[Choice] = first or [(0, 0)]
    heads: list[Choice] = [(one, two) for one in range(outer) for two in range(inner)]
    groups = [first + heads]
    if with_mean and min(outer, inner) > 1:
        groups.append(first + [(one, None) for one in range(outer)])
    return [*(group for group in groups if len(group) <= _html.MOST_PANELS), last]


def _parts(top: TopK, choice: Choice) -> tuple[Array, Array, Array]:
    one, two = choice[0] or 0, choice[1] or 0
    return top.indices[one, two], top.values[one, two], top.rest[one, two]


def _plan(plan: PlanInfo) -> str:
    told = [
        f"{step.kernel}: {', '.join(step.computes)}; {step.dtype}, {step.tiles} tiles of at most "
        f"{step.tile_shape}; {step.flops:,} flops, {step.bytes:,} bytes"
        for step in plan.steps
    ]
    head = (
        f"plan: {plan.predicted_ms:.3g} ms predicted, {plan.flops:,} flops, {plan.lanes} lanes, "
        f"at most {plan.peak_bytes:,} bytes"
    )
    return _html.lines(head, told)
