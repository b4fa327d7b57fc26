"""A graph under construction, and the layers that the families of models share.

Values are known by their names, as in ONNX itself: a layer takes the names of its inputs and
gives the name of its output. Names are readable and stable (``layer.0.attention.query``), so
that a graph can be cut at one of them.
"""

from __future__ import annotations

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


def joined(parts: Sequence[Linear]) -> Linear:
    """Several over the same input as one, whose outputs stand one after the other."""
    biases = [part.bias for part in parts if part.bias is not None]
    if len(biases) not in (0, len(parts)):
        raise ValueError("all have a bias, or none has")
    weight = np.concatenate([part.weight for part in parts])
    return Linear(weight, np.concatenate(biases) if biases else None)


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

    def split(self, x: str, outputs: Sequence[str], *, axis: int, name: str) -> Sequence[str]:
        """Cut a value into equal parts along an axis, and name them."""
        node = helper.make_node(
            "Split", [x], outputs, name=name, axis=axis, num_outputs=len(outputs)
        )
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


def positions(graph: Graph, table: str, input_ids: str, *, first: int) -> str:
    """The rows of a table ``[positions,E]`` from ``first``, one for each token: ``[L,E]``."""
    length = graph.node("Shape", input_ids, name="embeddings.length", start=1, end=2)
    axis = graph.constant("first_axis", np.array([0], np.int64))
    begin = graph.constant("first_position", np.array([first], np.int64))
    end = graph.node("Add", length, begin, name="embeddings.end")
    return graph.node("Slice", table, begin, end, axis, name="embeddings.positions")
