"""Attention in a graph: heads, scores with a bias, weights as values of their own, and biases.

A bias is added to the scores; it is 0 where a row sees a key and −inf where it does not.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from onnx import TensorProto, helper

from attention_service.modules.exporters.blocks import FLOAT, Graph
from attention_wire.tensors import Array


class Attended(NamedTuple):
    """Names of what attention gives: context ``[B,H,L,D]`` and weights ``[B,H,L,S]``."""

    context: str
    weights: str


def split_heads(graph: Graph, x: str, num_heads: int, head_dim: int, name: str) -> str:
    """``[B,L,H·D]`` → ``[B,H,L,D]``."""
    shape = graph.constant(f"split_{num_heads}x{head_dim}", _shape(0, 0, num_heads, head_dim))
    split = graph.node("Reshape", x, shape, name=f"{name}.split")
    return graph.node("Transpose", split, name=name, perm=[0, 2, 1, 3])


def repeat_heads(graph: Graph, x: str, sizes: tuple[int, int, int], name: str) -> str:
    """``[B,H,S,D]`` → ``[B,H·G,S,D]``, each head G times one after the other.

    Args:
        graph: the graph to add to.
        x: the heads.
        sizes: H, G and D.
        name: of the result.
    """
    heads, groups, size = sizes
    if groups == 1:
        return x
    axis = graph.constant("group_axis", np.array([2], np.int64))
    apart = graph.node("Unsqueeze", x, axis, name=f"{name}.apart")
    times = graph.constant(f"times_{groups}", _shape(1, 1, groups, 1, 1))
    repeated = graph.node("Expand", apart, times, name=f"{name}.groups")
    shape = graph.constant(f"repeat_{heads}x{groups}x{size}", _shape(0, heads * groups, -1, size))
    return graph.node("Reshape", repeated, shape, name=name)


def merge_heads(graph: Graph, x: str, width: int, name: str) -> str:
    """``[B,H,L,D]`` → ``[B,L,H·D]``, where width is H·D."""
    rows = graph.node("Transpose", x, name=f"{name}.rows", perm=[0, 2, 1, 3])
    shape = graph.constant(f"merge_{width}", _shape(0, 0, width))
    return graph.node("Reshape", rows, shape, name=name)


def attention(
    graph: Graph,
    heads: tuple[str, str, str],
    *,
    scale: str,
    bias: str,
    name: str,
    names: Attended,
    rows_may_be_empty: bool = False,
) -> Attended:
    """softmax(scale·query·keyᵀ + bias)·value, with the weights as a value of their own.

    Args:
        graph: the graph to add to.
        heads: query ``[B,H,L,D]``, key ``[B,H,S,D]`` and value ``[B,H,S,D]``.
        scale: a scalar; it multiplies the query, which is smaller than the scores.
        bias: added to the scores, broadcast to ``[B,H,L,S]``; −inf masks a key, and its
            weight is exactly 0.
        name: what the names of the steps begin with.
        names: the names to give to context and weights.
        rows_may_be_empty: whether the bias can mask every key of a row. Weights and context of
            such a row are 0; without this they would be NaN.
    """
    query, key, value = heads
    scaled = graph.node("Mul", query, scale, name=f"{name}scaled_query")
    transposed = graph.node("Transpose", key, name=f"{name}key_transposed", perm=[0, 1, 3, 2])
    raw = graph.node("MatMul", scaled, transposed, name=f"{name}raw_scores")
    scores = graph.node("Add", raw, bias, name=f"{name}scores")
    if rows_may_be_empty:
        weights = _guarded_softmax(graph, scores, bias, name, names.weights)
    else:
        weights = graph.node("Softmax", scores, name=names.weights, axis=-1)
    return Attended(graph.node("MatMul", weights, value, name=names.context), weights)


def _guarded_softmax(graph: Graph, scores: str, bias: str, name: str, weights: str) -> str:
    """Softmax, and 0 in the rows of which the bias masks every key.

    Clearing rows takes one more pass over the weights, a third of the whole module's time at
    2048 keys. So a graph without it runs where no row needs it; the bias tells, which is
    often smaller than the scores: a mask that all heads share has one head.
    """
    axis = graph.constant("last_axis", np.array([-1], np.int64))
    lowest, nothing = _minus_infinity(graph), _zero(graph)
    maximum = graph.node("ReduceMax", bias, axis, name=f"{name}row_maximum", keepdims=1)
    least = graph.node("ReduceMin", maximum, name=f"{name}least_maximum", keepdims=0)
    condition = graph.node("Greater", least, lowest, name=f"{name}every_row_has_keys")

    plain = Graph("plain")
    plain.output(plain.node("Softmax", scores, name=f"{name}plain_weights", axis=-1), FLOAT)
    cleared = Graph("cleared")
    softmax = cleared.node("Softmax", scores, name=f"{name}softmax", axis=-1)
    has_keys = cleared.node("Greater", maximum, lowest, name=f"{name}row_has_keys")
    rows = cleared.node("Where", has_keys, softmax, nothing, name=f"{name}cleared_weights")
    cleared.output(rows, FLOAT)
    return graph.choose(condition, plain, cleared, weights)


# --- Biases --------------------------------------------------------------------------------


def padding_bias(graph: Graph, attention_mask: str, name: str) -> str:
    """An int64 mask ``[B,S]`` of 1 and 0 → a bias ``[B,1,1,S]`` of 0 and −inf."""
    return _bias(graph, _no_padding(graph, attention_mask, name), name)


def causal_bias(graph: Graph, input_ids: str, name: str, left: int = -1) -> str:
    """A bias ``[L,L]`` of 0 and −inf: no row sees a key after it.

    Padding needs no bias beside it: it stands behind the tokens, which therefore never see it,
    and its own rows see themselves, so that none of them is empty.

    Args:
        graph: the graph to add to.
        input_ids: tokens ``[B,L]``.
        name: of the bias.
        left: how many keys before it a row sees; −1 for all.
    """
    return _bias(graph, _band(graph, input_ids, f"{name}.seen", left, 0), name)


def window_bias(
    graph: Graph, input_ids: str, attention_mask: str, name: str, sides: tuple[int, int]
) -> str:
    """A bias ``[B,1,L,L]`` of 0 and −inf: no padding, and none but so many keys on each side.

    Every row sees itself, padding too, so that none is empty: far behind a short text a window
    holds nothing but padding, and rows of NaN would reach the tokens through the next layer.

    Args:
        graph: the graph to add to.
        input_ids: tokens ``[B,L]``.
        attention_mask: int64 ``[B,L]`` of 1 and 0.
        name: of the bias.
        sides: how many keys before and after it a row sees; −1 for all.
    """
    tokens = _no_padding(graph, attention_mask, name)
    itself = _band(graph, input_ids, f"{name}.itself", 0, 0)
    some = graph.node("Or", tokens, itself, name=f"{name}.tokens_or_itself")
    near = _band(graph, input_ids, f"{name}.near", *sides)
    return _bias(graph, graph.node("And", some, near, name=f"{name}.seen"), name)


def _no_padding(graph: Graph, attention_mask: str, name: str) -> str:
    """An int64 mask ``[B,S]`` → bool ``[B,1,1,S]``."""
    axes = graph.constant("head_and_row_axes", np.array([1, 2], np.int64))
    allowed = graph.node("Cast", attention_mask, name=f"{name}.allowed", to=TensorProto.BOOL)
    return graph.node("Unsqueeze", allowed, axes, name=f"{name}.spread")


def _band(graph: Graph, input_ids: str, name: str, left: int, right: int) -> str:
    """Bool ``[L,L]``: the keys from so many before each row to so many after; −1 for all."""
    length = graph.node("Shape", input_ids, name=f"{name}.length", start=1, end=2)
    square = graph.node("Concat", length, length, name=f"{name}.square", axis=0)
    one = helper.make_tensor("one", TensorProto.INT64, [1], [1])
    band = graph.node("ConstantOfShape", square, name=f"{name}.ones", value=one)
    for side, upper, diagonal in ((left, 1, -left), (right, 0, right)):
        if side >= 0:
            corner = graph.constant(f"diagonal_{diagonal}", np.array(diagonal, np.int64))
            kept = f"{name}.{'not_before' if upper else 'not_after'}"
            band = graph.node("Trilu", band, corner, name=kept, upper=upper)
    return graph.node("Cast", band, name=name, to=TensorProto.BOOL)


def _bias(graph: Graph, allowed: str, name: str) -> str:
    return graph.node("Where", allowed, _zero(graph), _minus_infinity(graph), name=name)


def _zero(graph: Graph) -> str:
    return graph.constant("zero", np.array(0, np.float32))


def _minus_infinity(graph: Graph) -> str:
    return graph.constant("minus_infinity", np.array(-math.inf, np.float32))


def _shape(*sizes: int) -> Array:
    """The second input of Reshape; 0 keeps the size of that axis."""
    return np.array(sizes, np.int64)
