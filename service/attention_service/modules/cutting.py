"""Cutting: a text graph as segments between the attention of its layers.

A segment goes from one layer's context to the next layer's query, key and value, so that the
engine can compute the attention in between. Each parameter is in one segment; what depends on
the tokens alone, such as rotary positions, is computed in each that needs it. The segments
behind the first can be joined again, with plain attention between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from attention_service.modules.manifest import Layer
from attention_wire.tensors import Array

# The domain of operators that are ONNX Runtime's own.
_FUSED = "com.microsoft"


class CutError(Exception):
    """A graph has not what its manifest says of its layers; the message names it."""


class CutGraph:
    """The graph of a text module, to be cut.

    Args:
        path: an ONNX file.
        layers: where it can be cut, from the first layer.
        output: the name of its last hidden state.

    Raises:
        CutError: it cannot be read as ONNX.
    """

    def __init__(self, path: Path, layers: Sequence[Layer], output: str) -> None:
        try:
            self._model = onnx.load(path)
        except (DecodeError, OSError) as error:
            raise CutError(f"it is no ONNX file: {error}") from None
        self._layers = layers
        self._output = output
        graph = self._model.graph
        self._inputs = {item.name: item for item in graph.input}
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._producers = {name: node for node in graph.node for name in node.output}

    def segments(self) -> Iterator[bytes]:
        """Each segment as an ONNX file, one more than there are layers.

        A segment's inputs are the graph's own, as far as it reads them, and but for the first
        ``context`` and ``hidden`` of a layer; its outputs are ``query``, ``key``, ``value`` and
        ``hidden`` of the next, or the graph's output.

        Raises:
            CutError: a name is not there, or a segment needs more or less than that.
        """
        layers = self._layers
        passed: set[str] = set()
        for index in range(len(layers) + 1):
            given: tuple[str, ...] = ()
            if index:
                before = layers[index - 1]
                given = before.context, before.hidden
                passed |= {before.query, before.key, before.value}
            wanted = [self._output]
            if index < len(layers):
                after = layers[index]
                wanted = [after.hidden, after.query, after.key, after.value]
            yield self._segment(given, wanted, passed, f"segment {index}").SerializeToString()

    def joined(self) -> bytes:
        """All behind the first segment as one ONNX file, with the attention of its layers in it.

        Its inputs are what the first segment gives, and the graph's own as far as it reads them;
        its outputs the graph's output, and of each layer ``weights_of``, ``[B,H,L,L]``. It is
        right for layers that see every key, and have as many heads of keys as of queries.
        """
        first = self._layers[0]
        given = first.hidden, first.query, first.key, first.value
        wanted = [self._output, *map(weights_of, self._layers)]
        nodes = [node for layer in self._layers for node in _attention(layer)]
        made = {node.output[0]: node for node in nodes}
        joined: bytes = self._segment(given, wanted, set(), "joined", made).SerializeToString()
        return joined

    def projection(self, layer: Layer, num_heads: int, embed_dim: int) -> Array:
        """The constant that a layer's merged context is multiplied by, float32 ``[H·Dv,E]``.

        Raises:
            CutError: there is none of that name, or it has another shape.
        """
        if layer.projection not in self._constants:
            raise CutError(f"it has no constant {layer.projection!r}")
        array: Array = numpy_helper.to_array(self._constants[layer.projection])
        shape = list(array.shape)
        if len(shape) != 2 or shape[0] % num_heads or shape[1] != embed_dim:
            raise CutError(
                f"its constant {layer.projection!r} has the shape {shape}, which is no projection "
                f"of {num_heads} heads to {embed_dim}"
            )
        return array.astype(np.float32, copy=False)

    def _segment(
        self,
        given: Sequence[str],
        wanted: Sequence[str],
        passed: Set[str],
        name: str,
        made: Mapping[str, NodeProto] = MappingProxyType({}),
    ) -> ModelProto:
        producers = {**self._producers, **made}
        nodes: list[NodeProto] = []
        inputs: dict[str, None] = dict.fromkeys(given)
        constants: dict[str, None] = {}
        # Depth first, so that every node stands behind those that it reads.
        done: set[str] = set(given)
        met: set[str] = set()
        pending = [(value, False) for value in reversed(wanted)]
        while pending:
            value, is_read = pending.pop()
            met.add(value)
            if is_read:
                node = producers[value]
                if not done.issuperset(node.output):
                    nodes.append(node)
                    done.update(node.output)
            elif value in done or not value:
                continue
            elif value in self._constants:
                constants[value] = None
                done.add(value)
            elif value in self._inputs:
                inputs[value] = None
                done.add(value)
            else:
                pending.append((value, True))
                pending += [(read, False) for read in _reads(producers, value)]
        self._check(given, passed, met)
        graph = helper.make_graph(
            nodes,
            name,
            [self._input(value) for value in inputs],
            [helper.make_tensor_value_info(value, TensorProto.FLOAT, None) for value in wanted],
        )
        opsets = {item.domain: item for item in self._model.opset_import}
        opsets.setdefault(_FUSED, helper.make_opsetid(_FUSED, 1))
        model = helper.make_model(
            graph, opset_imports=opsets.values(), ir_version=self._model.ir_version
        )
        # After make_model, which copies its graph.
        model.graph.initializer.extend(self._constants[value] for value in constants)
        return model

    def _check(self, given: Sequence[str], passed: Set[str], met: Set[str]) -> None:
        """That a segment goes on from what it is given, and computes no attention itself.

        Otherwise it would give the right numbers, whatever was done to a layer's context.
        """
        for value in given:
            if value not in self._producers:
                raise CutError(f"it has no value {value!r}")
            if value not in met:
                raise CutError(f"nothing behind the attention of a layer reads {value!r}")
        if around := sorted(passed & met):
            raise CutError(f"{around[0]!r} is read behind the attention that it is given to")

    def _input(self, name: str) -> onnx.ValueInfoProto:
        found = self._inputs.get(name)
        return found or helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def weights_of(layer: Layer) -> str:
    """The name of a layer's weights in the graph of all layers."""
    return f"{layer.context}.weights"


def _attention(layer: Layer) -> list[NodeProto]:
    """From a layer's query, key and value to its context, where every row sees every key."""
    scores, weights = f"{layer.context}.scores", weights_of(layer)
    heads = [layer.query, layer.key]
    product = helper.make_node(
        "FusedMatMul", heads, [scores], domain=_FUSED, transB=1, alpha=layer.scale
    )
    return [
        product,
        helper.make_node("Softmax", [scores], [weights], axis=-1),
        helper.make_node("MatMul", [weights, layer.value], [layer.context]),
    ]


def _reads(producers: Mapping[str, NodeProto], value: str) -> Sequence[str]:
    node = producers.get(value)
    if node is None:
        raise CutError(f"it has no value {value!r}")
    if any(attribute.HasField("g") for attribute in node.attribute):
        raise CutError(f"its node {node.name!r} holds a graph, and cannot be cut out")
    return list(node.input)
