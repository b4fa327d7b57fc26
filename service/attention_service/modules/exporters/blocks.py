"""A graph under construction, and the layers that the families of models share.

Values are known by their names, as in ONNX itself: a layer takes the names of its inputs and
gives the name of its output. Names are readable and stable (``layer.0.attention.query``), so
that a graph can be cut at one of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

from attention_service.modules.exporters.errors import ExportError
from attention_service.modules.exporters.weights import Parameter
from attention_wire.tensors import Array

# The first opset with all that is used here is 20; ONNX Runtime's fusions know the operators
# of 21 in every supported version, those of later opsets not yet.
OPSET = 21
IR_VERSION = 10  # the newest that every supported ONNX Runtime reads
FLOAT = TensorProto.FLOAT
INT64 = TensorProto.INT64

# A protobuf message ends at 2 GiB; one MiB of that is for the nodes and the names.
MAX_WEIGHT_BYTES = 2**31 - 2**20

Dimensions = Sequence[int | str]


class Linear(NamedTuple):
    """The parameters of ``torch.nn.Linear``: weight ``[out,in]``, bias ``[out]`` or None."""

    weight: Parameter
    bias: Parameter | None


class Norm(NamedTuple):
    """The parameters of a layer norm: weight ``[features]``, bias ``[features]`` or None."""

    weight: Parameter
    bias: Parameter | None


class Graph:
    """An ONNX graph under construction.

    Args:
        name: the graph's name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[NodeProto] = []
        self._inputs: list[ValueInfoProto] = []
        self._outputs: list[ValueInfoProto] = []
        self._constants: dict[str, Array] = {}
        self._weight_bytes = 0

    def input(self, name: str, element_type: int, shape: Dimensions) -> str:
        """Declare an input of the graph; a dimension given by name is dynamic."""
        self._inputs.append(helper.make_tensor_value_info(name, element_type, list(shape)))
        return name

    def output(self, name: str, element_type: int, shape: Dimensions | None = None) -> None:
        """Make a value an output of the graph.

        The last dimension of attention weights needs a name that no input has: ONNX Runtime
        binds the output to a buffer only then.
        """
        self._outputs.append(helper.make_tensor_value_info(name, element_type, shape))

    def constant(self, name: str, array: Array) -> str:
        """A value that is stored in the graph.

        The same name may be given again with an equal array, by layers that share it.

        Raises:
            ExportError: the graph grows past what one ONNX file holds.
            ValueError: the name stands for another array already.
        """
        if name in self._constants:
            if not np.array_equal(self._constants[name], array):
                raise ValueError(f"two different constants are named {name!r}")
            return name
        self._weight_bytes += array.nbytes
        if self._weight_bytes > MAX_WEIGHT_BYTES:
            raise ExportError(
                f"the weights take more than 2 GiB in float32 (at {name!r}: "
                f"{self._weight_bytes / 2**30:.2f} GiB), and one ONNX file holds less than "
                "that: choose a smaller model"
            )
        self._constants[name] = array
        return name

    def node(self, operator: str, *inputs: str, name: str, **attributes: Any) -> str:
        """Add an operator of one output; ``name`` names it and its output."""
        self._nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def split(self, x: str, parts: int, *, axis: int, name: str) -> tuple[str, ...]:
        """Cut a value into equal parts along an axis."""
        outputs = tuple(f"{name}.{part}" for part in range(parts))
        node = helper.make_node("Split", [x], outputs, name=name, axis=axis, num_outputs=parts)
        self._nodes.append(node)
        return outputs

    def choose(self, condition: str, then: Graph, otherwise: Graph, name: str) -> str:
        """Add a choice between two graphs of no input and one output, by a bool scalar.

        The two see the values of this graph, and keep their constants in it.
        """
        branches = {"then_branch": then._proto(), "else_branch": otherwise._proto()}
        self._nodes.append(helper.make_node("If", [condition], [name], name=name, **branches))
        return name

    def model(self) -> ModelProto:
        """The finished model, with its constants inside."""
        model = helper.make_model(
            self._proto(),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="attention-service",
        )
        # After make_model, which copies its graph: weights should not be copied with it.
        for name, array in self._constants.items():
            model.graph.initializer.append(numpy_helper.from_array(array, name))
        return model

    def _proto(self) -> GraphProto:
        return helper.make_graph(self._nodes, self._name, self._inputs, self._outputs)


# --- Layers --------------------------------------------------------------------------------


def linear(graph: Graph, x: str, parameters: Linear, name: str) -> str:
    """``x·weightᵀ + bias``: ``[…,in]`` → ``[…,out]``."""
    weight = graph.constant(f"{name}.weight", parameters.weight.T)
    if parameters.bias is None:
        return graph.node("MatMul", x, weight, name=name)
    product = graph.node("MatMul", x, weight, name=f"{name}.product")
    return graph.node("Add", product, graph.constant(f"{name}.bias", parameters.bias), name=name)


def layer_norm(graph: Graph, x: str, parameters: Norm, epsilon: float, name: str) -> str:
    """Layer norm over the last axis."""
    given = [graph.constant(f"{name}.weight", parameters.weight)]
    if parameters.bias is not None:
        given.append(graph.constant(f"{name}.bias", parameters.bias))
    return graph.node("LayerNormalization", x, *given, name=name, axis=-1, epsilon=epsilon)


def rms_norm(graph: Graph, x: str, weight: Parameter, epsilon: float, name: str) -> str:
    """RMS norm over the last axis (https://arxiv.org/abs/1910.07467)."""
    axis = graph.constant("last_axis", np.array([-1], np.int64))
    least = graph.constant("rms_epsilon", np.array(epsilon, np.float32))
    square = graph.node("Mul", x, x, name=f"{name}.square")
    mean = graph.node("ReduceMean", square, axis, name=f"{name}.mean", keepdims=1)
    total = graph.node("Add", mean, least, name=f"{name}.total")
    size = graph.node("Sqrt", total, name=f"{name}.size")
    unit = graph.node("Div", x, size, name=f"{name}.unit")
    return graph.node("Mul", unit, graph.constant(f"{name}.weight", weight), name=name)


# ``hidden_act`` of a configuration → operator and attributes. The tanh forms are written
# differently in transformers and are one function (https://arxiv.org/abs/1606.08415).
ACTIVATIONS: dict[str, tuple[str, dict[str, str]]] = {
    "gelu": ("Gelu", {"approximate": "none"}),
    "gelu_new": ("Gelu", {"approximate": "tanh"}),
    "gelu_fast": ("Gelu", {"approximate": "tanh"}),
    "gelu_pytorch_tanh": ("Gelu", {"approximate": "tanh"}),
    "relu": ("Relu", {}),
}


def activation(graph: Graph, x: str, kind: str, name: str) -> str:
    """An activation by its name in a configuration.

    Raises:
        ExportError: it is not known; the message lists those that are.
    """
    if kind == "silu":
        return graph.node("Mul", x, graph.node("Sigmoid", x, name=f"{name}.gate"), name=name)
    if kind not in ACTIVATIONS:
        known = ", ".join((*ACTIVATIONS, "silu"))
        raise ExportError(f"the activation {kind!r} is not supported; supported are {known}")
    operator, attributes = ACTIVATIONS[kind]
    return graph.node(operator, x, name=name, **attributes)


# --- Attention -----------------------------------------------------------------------------


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


def positions(graph: Graph, table: str, input_ids: str, *, first: int) -> str:
    """The rows of a table ``[positions,E]`` from ``first``, one for each token: ``[L,E]``."""
    length = graph.node("Shape", input_ids, name="embeddings.length", start=1, end=2)
    axis = graph.constant("first_axis", np.array([0], np.int64))
    begin = graph.constant("first_position", np.array([first], np.int64))
    end = graph.node("Add", length, begin, name="embeddings.end")
    return graph.node("Slice", table, begin, end, axis, name="embeddings.positions")


def _zero(graph: Graph) -> str:
    return graph.constant("zero", np.array(0, np.float32))


def _minus_infinity(graph: Graph) -> str:
    return graph.constant("minus_infinity", np.array(-math.inf, np.float32))


def _shape(*sizes: int) -> Array:
    """The second input of Reshape; 0 keeps the size of that axis."""
    return np.array(sizes, np.int64)
