"""Plan → ONNX graph: attention as ordinary graphs of MatMul and Softmax, and a fused one.

Both take a tile: some heads' query rows ``query [N,M,D]`` and the keys that they may see,
``key [N,T,D]`` and ``value [N,T,Dv]``; N counts key heads, and M rows of all query heads that
read one. Scale and softcap are inputs, so that one session serves all their values.

The composed graph gives everything that a call can ask for. ONNX Runtime's optimizer fuses
its transposes into the products (docs/decisions/0005-composed-graph.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

BiasKind: TypeAlias = Literal["none", "all", "end"]

OPSET = 21
IR_VERSION = 10  # the newest that every supported ONNX Runtime reads
# Keys of one piece of a row's scores, to which a bias is added alone.
PIECE_KEYS = 128
_TYPES = {
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
}
_ROWS = ["N", "M"]


@dataclass(frozen=True, slots=True)
class TileSpec:
    """What a composed graph is built from; equal specs share one session.

    Only options with few values stand here. What a caller may choose freely, such as the
    scale, is an input of the graph: it must not grow the cache of sessions.

    Attributes:
        dtype: ``float32`` or ``float64``.
        outputs: of ``output``, ``weights``, ``lse``, ``entropy``, ``raw``, ``softcap``,
            ``masked`` and ``top_k``; sorted.
        bias: ``all``: the input ``bias [N or 1,M,T]`` is added to the scores; ``end``: the
            scores are cut into pieces of ``PIECE_KEYS``, which have to divide T, and
            ``bias [N,M,E,PIECE_KEYS]`` is added to those that ``places [N,M,E,3]`` names by
            key head, row and piece.
        softcap: whether scores are capped.
        sink: whether there is an input ``sink [N,M,1]``.
        rounding: dtype that weights are rounded to before the largest are found.
    """

    dtype: str
    outputs: tuple[str, ...]
    bias: BiasKind = "none"
    softcap: bool = False
    sink: bool = False
    rounding: str | None = None


@dataclass(frozen=True, slots=True)
class FlashSpec:
    """The fused graph: output alone, every query sees every key. Equal specs share a session."""

    dtype: str = "float32"


@dataclass(frozen=True, slots=True)
class TopKSpec:
    """The largest of each row of ``weights [M,T]``."""

    dtype: str


Spec: TypeAlias = TileSpec | FlashSpec | TopKSpec


def build(spec: Spec) -> ModelProto:
    """The ONNX model of a spec."""
    if isinstance(spec, TileSpec):
        return _Composed(spec).model()
    return _flash(spec) if isinstance(spec, FlashSpec) else _top_k(spec)


class _Composed:
    """Builds softmax(softcap(scale·query·keyᵀ) + bias)·value, and what else is asked for."""

    def __init__(self, spec: TileSpec) -> None:
        self._spec = spec
        self._nodes: list[NodeProto] = []
        self._type = _TYPES[spec.dtype]

    def model(self) -> ModelProto:
        spec, wanted = self._spec, self._spec.outputs
        masked = self._scores()
        # A graph's output is named where it is made: an Identity would copy it.
        softmax = "weights" if "weights" in wanted and not spec.sink else "softmax"
        if {"output", "weights", "lse", "entropy", "top_k"} & set(wanted):
            self._add("Softmax", masked, softmax, axis=-1)
        if spec.sink or {"lse", "entropy"} & set(wanted):
            self._row_sums(masked, softmax)
        if "entropy" in wanted:
            self._entropy(masked, softmax)
        if spec.sink:
            # 1 / (1 + exp(sink − lse)), precise for the smallest share too; Sigmoid is not.
            self._add("Sub", "sink", "lse", "sink_over_keys")
            self._add("Exp", "sink_over_keys", "sink_to_keys")
            self._add("Add", "sink_to_keys", "one", "all_to_keys")
            self._add("Reciprocal", "all_to_keys", "keys_share")
        if "output" in wanted:
            self._add("MatMul", softmax, "value", "attended" if spec.sink else "output")
            if spec.sink:
                self._add("Mul", "attended", "keys_share", "output")
        if spec.sink and {"weights", "top_k"} & set(wanted):
            softmax = self._add("Mul", "softmax", "keys_share", "weights")
        if "top_k" in wanted:
            self._nodes += _top_k_nodes(softmax, spec.rounding, spec.dtype)
        return _model(self._nodes, self._inputs(), self._outputs(), self._constants())

    def _scores(self) -> str:
        """The scores after everything, and on the way each form that is asked for."""
        spec = self._spec
        # The query is smaller than the scores, so the scale costs least there.
        self._add("Mul", "query", "scale", "scaled_query")
        names = self._score_names()
        scores = self._product(names[0])
        if spec.softcap:
            scores = self._cap(scores, names[1])
        if spec.bias == "all":
            scores = self._add("Add", scores, "bias", names[2])
        elif spec.bias == "end":
            # ONNX Runtime adds where the scores lie, and leaves the other pieces alone.
            self._add("Reshape", scores, "in_pieces", "pieces")
            self._add("ScatterND", "pieces", "places", "bias", "masked.pieces", reduction="add")
            scores = self._add("Reshape", "masked.pieces", "in_rows", names[2])
        return scores

    def _score_names(self) -> tuple[str, str, str]:
        """The names after the product, the cap and the bias.

        A form that is asked for is the last before it that is made.
        """
        spec = self._spec
        names = ["raw", "softcap", "masked"]
        made = [True, spec.softcap, spec.bias != "none"]
        last = {0: 0, 1: 1 if made[1] else 0, 2: 2 if made[2] else 1 if made[1] else 0}
        for asked in range(3):
            if names[asked] in spec.outputs and last[asked] != asked:
                names[last[asked]], names[asked] = names[asked], f"{names[asked]}.unmade"
        return names[0], names[1], names[2]

    def _product(self, name: str) -> str:
        self._add("Transpose", "key", "key.transposed", perm=[0, 2, 1])
        return self._add("MatMul", "scaled_query", "key.transposed", name)

    def _cap(self, scores: str, name: str) -> str:
        self._add("Div", scores, "cap", f"{name}.over_cap")
        self._add("Tanh", f"{name}.over_cap", f"{name}.tanh")
        return self._add("Mul", f"{name}.tanh", "cap", name)

    def _row_sums(self, masked: str, softmax: str) -> None:
        """``lse``: the largest weight is 1/Σ exp(score − maximum), which spares the sum."""
        self._add("ReduceMax", masked, "last_axis", "maximum", keepdims=1)
        self._add("ReduceMax", softmax, "last_axis", "largest_weight", keepdims=1)
        self._add("Log", "largest_weight", "log_largest_weight")
        self._add("Sub", "maximum", "log_largest_weight", "lse")

    def _entropy(self, masked: str, softmax: str) -> None:
        """``Σ w·(maximum − score) − ln w_max``: both parts are ≥ 0, so nothing cancels."""
        if self._spec.bias != "none":
            # 0·∞ would be NaN: a masked key's score is taken as the lowest number.
            masked = self._add("Max", masked, "lowest", "finite_masked")
        self._add("Sub", "maximum", masked, "below_maximum")
        self._add("Mul", softmax, "below_maximum", "surprise")
        self._add("ReduceSum", "surprise", "last_axis", "mean_below_maximum", keepdims=1)
        self._add("Sub", "mean_below_maximum", "log_largest_weight", "entropy")

    def _add(self, operator: str, *names: str, **attributes: Any) -> str:
        *inputs, output = names
        self._nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def _inputs(self) -> list[ValueInfoProto]:
        spec = self._spec
        shapes: dict[str, list[str | int]] = {
            "query": ["N", "M", "D"],
            "key": ["N", "T", "D"],
            "scale": [],
        }
        if spec.bias == "all":
            shapes["bias"] = ["N_bias", "M", "T"]
        elif spec.bias == "end":
            shapes["bias"] = ["N", "M", "E", PIECE_KEYS]
        if spec.softcap:
            shapes["cap"] = []
        if spec.sink:
            shapes["sink"] = ["N", "M", 1]
        if "output" in spec.outputs:
            shapes["value"] = ["N", "T", "Dv"]
        inputs = [helper.make_tensor_value_info(n, self._type, s) for n, s in shapes.items()]
        if spec.bias == "end":
            places: list[str | int] = ["N", "M", "E", 3]
            inputs.append(helper.make_tensor_value_info("places", TensorProto.INT64, places))
        return inputs

    def _outputs(self) -> list[ValueInfoProto]:
        shapes: dict[str, list[str | int]] = {
            # The last dimensions have names of their own: they cannot be bound otherwise.
            "output": [*_ROWS, "Dv_out"],
            **{name: [*_ROWS, "T_out"] for name in ("weights", "raw", "softcap", "masked")},
            "lse": [*_ROWS, 1],
            "entropy": [*_ROWS, 1],
        }
        outputs = [
            helper.make_tensor_value_info(name, self._type, shapes[name])
            for name in self._spec.outputs
            if name != "top_k"
        ]
        return outputs + (
            _top_k_outputs(_ROWS, self._type) if "top_k" in self._spec.outputs else []
        )

    def _constants(self) -> dict[str, Any]:
        dtype = np.dtype(self._spec.dtype)
        return {
            "last_axis": np.array([-1]),
            "in_pieces": np.array([0, 0, -1, PIECE_KEYS]),
            "in_rows": np.array([0, 0, -1]),
            "lowest": np.array(np.finfo(dtype).min, dtype),
            "one": np.array(1, dtype),
        }


def _top_k_nodes(weights: str, rounding: str | None, dtype: str) -> list[NodeProto]:
    nodes = []
    if rounding is not None:
        nodes += [
            helper.make_node("Cast", [weights], ["rounded"], to=_TYPES[rounding]),
            helper.make_node("Cast", ["rounded"], ["unrounded"], to=_TYPES[dtype]),
        ]
        weights = "unrounded"
    # Equal weights come by rising index, as the operator says.
    nodes.append(helper.make_node("TopK", [weights, "k"], ["values", "indices"], axis=-1))
    return nodes


def _top_k_outputs(rows: list[str], float_type: int) -> list[ValueInfoProto]:
    return [
        helper.make_tensor_value_info("values", float_type, [*rows, "k_out"]),
        helper.make_tensor_value_info("indices", TensorProto.INT64, [*rows, "k_out"]),
    ]


def _top_k(spec: TopKSpec) -> ModelProto:
    float_type = _TYPES[spec.dtype]
    inputs = [helper.make_tensor_value_info("weights", float_type, ["M", "T"])]
    return _model(
        _top_k_nodes("weights", None, spec.dtype), inputs, _top_k_outputs(["M"], float_type), {}
    )


def _flash(spec: FlashSpec) -> ModelProto:
    """ONNX Runtime's fused kernel, one head each, which never forms the scores."""
    float_type = _TYPES[spec.dtype]
    nodes = [
        helper.make_node("Mul", ["query", "scale"], ["scaled_query"]),
        helper.make_node(
            "MultiHeadAttention",
            ["scaled_query", "key", "value"],
            ["output"],
            domain="com.microsoft",
            num_heads=1,
            scale=1.0,
        ),
    ]
    shapes: dict[str, list[str]] = {
        "query": ["N", "M", "D"],
        "key": ["N", "T", "D"],
        "value": ["N", "T", "Dv"],
        "scale": [],
    }
    inputs = [helper.make_tensor_value_info(n, float_type, s) for n, s in shapes.items()]
    outputs = [helper.make_tensor_value_info("output", float_type, ["N", "M", "Dv_out"])]
    return _model(nodes, inputs, outputs, {})


def _model(
    nodes: list[NodeProto],
    inputs: list[ValueInfoProto],
    outputs: list[ValueInfoProto],
    constants: dict[str, Any],
) -> ModelProto:
    used = {name for node in nodes for name in node.input}
    if any(node.op_type == "TopK" for node in nodes):
        inputs = [*inputs, helper.make_tensor_value_info("k", TensorProto.INT64, [1])]
    graph = helper.make_graph(
        nodes,
        "attention",
        inputs,
        outputs,
        [numpy_helper.from_array(array, name) for name, array in constants.items() if name in used],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
