"""Cutting: a text graph as segments between the attention of its layers.

A segment goes from one layer's context to the next layer's query, key and value, so that the
engine can compute the attention in between. Each parameter is in one segment; what depends on
the tokens alone, such as rotary positions, is computed in each that needs it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from attention_service.modules.manifest import Layer
from attention_wire.tensors import Array


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
        self, given: Sequence[str], wanted: Sequence[str], passed: Set[str], name: str
    ) -> ModelProto:
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
                node = self._producers[value]
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
                pending += [(read, False) for read in self._reads(value)]
        self._check(given, passed, met)
        graph = helper.make_graph(
            nodes,
            name,
            [self._input(value) for value in inputs],
            [helper.make_tensor_value_info(value, TensorProto.FLOAT, None) for value in wanted],
        )
        model = helper.make_model(
            graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version
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

    def _reads(self, value: str) -> Sequence[str]:
        node = self._producers.get(value)
        if node is None:
            raise CutError(f"it has no value {value!r}")
        if any(attribute.HasField("g") for attribute in node.attribute):
            raise CutError(f"its node {node.name!r} holds a graph, and cannot be cut out")
        return list(node.input)

    def _input(self, name: str) -> onnx.ValueInfoProto:
        found = self._inputs.get(name)
        return found or helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
