"""Plan → ONNX graph: attention as an ordinary graph of MatMul and Softmax.

This composed graph takes every mask and dtype, and gives the weights for nothing. ONNX
Runtime's one big ``Attention`` operator takes fewer and is about as fast
(docs/decisions/0005-composed-graph.md).

Inputs have five dimensions, so that grouped query heads broadcast over their key head:
``query [B,Hkv,G,L,D]``, ``key [B,Hkv,1,S,D]``, ``value [B,Hkv,1,S,Dv]``, ``mask``
(broadcasts to ``[B,Hkv,G,L,S]``) and ``scale`` (a scalar, so that one session serves every
scale).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

MaskKind: TypeAlias = Literal["none", "bool", "float"]

OPSET = 21
IR_VERSION = 10  # the newest that every supported ONNX Runtime reads
_TYPES = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """What a graph is built from; equal specs share one session.

    Only options with few values stand here. What a caller may choose freely, such as the
    scale, is an input of the graph: it must not grow the cache of sessions.

    Attributes:
        dtype: ``float32`` or ``float64``.
        mask: none, bool (true = may attend) or float (added to the scores).
        is_causal: query i sees the keys j ≤ i.
        output: whether ``output`` is an output of the graph.
        weights: whether ``weights`` is one.
    """

    dtype: str
    mask: MaskKind
    is_causal: bool
    output: bool
    weights: bool


def build(spec: GraphSpec) -> ModelProto:
    """The ONNX model of a spec: softmax(scale·query·keyᵀ, masked)·value."""
    float_type = _TYPES[spec.dtype]
    nodes = [
        # The query is smaller than the scores, so the scale costs least there.
        helper.make_node("Mul", ["query", "scale"], ["scaled_query"]),
        helper.make_node("Transpose", ["key"], ["key_transposed"], perm=[0, 1, 2, 4, 3]),
        helper.make_node("MatMul", ["scaled_query", "key_transposed"], ["raw_scores"]),
    ]
    scores = "raw_scores"
    if spec.mask == "float":
        nodes.append(helper.make_node("Add", [scores, "mask"], ["biased_scores"]))
        scores = "biased_scores"
    allowed = ["mask"] if spec.mask == "bool" else []
    if spec.is_causal:
        nodes += _causal_nodes()
        allowed.append("causal")
    for index, name in enumerate(allowed):
        masked = f"masked_scores.{index}"
        nodes.append(helper.make_node("Where", [name, scores, "minus_infinity"], [masked]))
        scores = masked
    nodes += _softmax_nodes(scores, may_be_empty=spec.mask != "none")
    if spec.output:
        nodes.append(helper.make_node("MatMul", ["weights", "value"], ["output"]))
    graph = helper.make_graph(
        nodes,
        "attention",
        inputs=_inputs(spec, float_type),
        outputs=[
            # The last dimension has a name of its own: ONNX Runtime cannot bind it otherwise.
            helper.make_tensor_value_info(name, float_type, ["B", "Hkv", "G", "L", last])
            for name, last in (("output", "Dv_out"), ("weights", "S_out"))
            if getattr(spec, name)
        ],
        initializer=[
            *(
                numpy_helper.from_array(np.array(value, spec.dtype), name)
                for name, value in (("minus_infinity", -np.inf), ("nothing", 0))
            ),
            *(
                numpy_helper.from_array(np.array(value, np.int64), name)
                for name, value in (("zero", 0), ("one", 1), ("last_axis", [-1]))
            ),
        ],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )


def _inputs(spec: GraphSpec, float_type: int) -> list[ValueInfoProto]:
    shapes: dict[str, list[str]] = {
        "query": ["B", "Hkv", "G", "L", "D"],
        "key": ["B", "Hkv", "one_k", "S", "D"],
        "value": ["B", "Hkv", "one_v", "S", "Dv"],
        "scale": [],
    }
    if not spec.output:
        del shapes["value"]
    inputs = [helper.make_tensor_value_info(n, float_type, shape) for n, shape in shapes.items()]
    if spec.mask != "none":
        mask_type = TensorProto.BOOL if spec.mask == "bool" else float_type
        mask_shape = [f"mask_{axis}" for axis in range(5)]
        inputs.append(helper.make_tensor_value_info("mask", mask_type, mask_shape))
    return inputs


def _causal_nodes() -> list[NodeProto]:
    """``causal [L,S]``: key j ≤ query i."""
    node = helper.make_node
    return [
        node("Shape", ["query"], ["q_length_1d"], start=3, end=4),
        node("Shape", ["key"], ["kv_length_1d"], start=3, end=4),
        node("Squeeze", ["q_length_1d"], ["q_length"]),
        node("Squeeze", ["kv_length_1d"], ["kv_length"]),
        node("Range", ["zero", "q_length", "one"], ["rows_1d"]),
        node("Range", ["zero", "kv_length", "one"], ["columns"]),
        node("Unsqueeze", ["rows_1d", "last_axis"], ["rows"]),
        node("LessOrEqual", ["columns", "rows"], ["causal"]),
    ]


def _softmax_nodes(scores: str, *, may_be_empty: bool) -> list[NodeProto]:
    """``weights``; where a mask can leave a row no key, that row is zero and not NaN."""
    if not may_be_empty:
        return [helper.make_node("Softmax", [scores], ["weights"], axis=-1)]
    return [
        helper.make_node("ReduceMax", [scores, "last_axis"], ["row_maximum"], keepdims=1),
        helper.make_node("Greater", ["row_maximum", "minus_infinity"], ["row_has_keys"]),
        helper.make_node("Softmax", [scores], ["softmax"], axis=-1),
        helper.make_node("Where", ["row_has_keys", "softmax", "nothing"], ["weights"]),
    ]
