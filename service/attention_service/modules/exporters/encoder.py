"""Encoders of BERT's kind: norms after the residuals, learned positions, all tokens see all.

The architecture is that of https://arxiv.org/abs/1810.04805. Families differ in what their
configurations and tensors are called and in how they count positions. What comes after the last
hidden state (pooler, heads) is left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from typing_extensions import override

from attention_service.modules.exporters import blocks
from attention_service.modules.exporters.attention import padding_bias
from attention_service.modules.exporters.blocks import Norm
from attention_service.modules.exporters.family import Built
from attention_service.modules.exporters.text_graph import Inputs, TextGraph, TextSizes
from attention_service.modules.exporters.weights import Weights
from attention_service.modules.manifest import Layer


@dataclass(frozen=True, slots=True)
class Sizes:
    """An encoder in numbers.

    Attributes:
        vocabulary: ids that the word embeddings hold.
        width: of a hidden state.
        layers: encoder layers.
        heads: of each layer.
        inner: width inside of the feed-forward networks.
        positions: rows of the table of positions.
        first_position: the row of the first token.
        segments: rows of the table of segments; 0 where there is none.
        activation: of the feed-forward networks, as configurations name it.
        epsilon: of the layer norms.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    inner: int
    positions: int
    first_position: int
    segments: int
    activation: str
    epsilon: float

    @property
    def head_size(self) -> int:
        """The width of one head."""
        return self.width // self.heads

    @property
    def longest(self) -> int:
        """Tokens that have a position."""
        return self.positions - self.first_position


@dataclass(frozen=True, slots=True)
class Names:
    """What a family calls its tensors, but for ``.weight`` and ``.bias``.

    Attributes:
        prefix: of all of them inside a model for a task; a model alone may have bare names.
        words: the embeddings of tokens.
        positions: those of positions.
        segments: those of segments; unused where there are none.
        norm: the embeddings' layer norm.
        layer: what the names of a layer begin with, ``{}`` standing for its number.
        query: the projection, and so on.
        key: as above.
        value: as above.
        merged: the projection of the merged heads.
        attention_norm: the layer norm after attention.
        widened: into the feed-forward network.
        narrowed: out of it.
        layer_norm: the layer norm after it.
    """

    prefix: str
    words: str = "embeddings.word_embeddings"
    positions: str = "embeddings.position_embeddings"
    segments: str = "embeddings.token_type_embeddings"
    norm: str = "embeddings.LayerNorm"
    layer: str = "encoder.layer.{}"
    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    merged: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    widened: str = "intermediate.dense"
    narrowed: str = "output.dense"
    layer_norm: str = "output.LayerNorm"


def build(name: str, sizes: Sizes, names: Names, weights: Weights) -> Built:
    """The text module of an encoder.

    Args:
        name: of the graph.
        sizes: of the encoder.
        names: of its tensors.
        weights: they.

    Raises:
        ExportError: a tensor is missing or has another shape, or the activation is not known.
    """
    return _Encoder(name, sizes, names, weights).built()


class _Encoder(TextGraph):
    """Builds the graph of one model; the methods go from the tokens up."""

    def __init__(self, name: str, sizes: Sizes, names: Names, weights: Weights) -> None:
        text = TextSizes(
            width=sizes.width,
            layers=sizes.layers,
            heads=sizes.heads,
            kv_heads=sizes.heads,
            head_size=sizes.head_size,
            longest=sizes.longest,
        )
        super().__init__(name, text, weights, prefix=names.prefix, first=f"{names.words}.weight")
        self._sizes = sizes
        self._names = names

    @override
    def _output(self, inputs: Inputs) -> str:
        hidden = self._embeddings(inputs.input_ids, inputs.token_type_ids)
        bias = padding_bias(self._graph, inputs.attention_mask, "padding_bias")
        for layer in range(self._sizes.layers):
            last = layer == self._sizes.layers - 1
            hidden = self._layer(layer, hidden, bias, "output" if last else f"layer.{layer}.output")
        return hidden

    def _embeddings(self, input_ids: str, token_type_ids: str) -> str:
        """The layer norm of the sum of word, segment and position: ``[B,L,E]``."""
        graph, sizes, names = self._graph, self._sizes, self._names
        word = self._table("word", names.words, sizes.vocabulary)
        total = graph.node("Gather", word, input_ids, name="embeddings.words")
        if sizes.segments:
            segment = self._table("token_type", names.segments, sizes.segments)
            segments = graph.node("Gather", segment, token_type_ids, name="embeddings.segments")
            total = graph.node("Add", total, segments, name="embeddings.words_and_segments")
        table = self._table("position", names.positions, sizes.positions)
        positions = blocks.positions(graph, table, input_ids, first=sizes.first_position)
        total = graph.node("Add", total, positions, name="embeddings.sum")
        return self._norm(names.norm, total, "embeddings.output")

    def _layer(self, layer: int, x: str, bias: str, name: str) -> str:
        """One encoder layer: ``[B,L,E]`` → ``[B,L,E]``."""
        graph, sizes, names = self._graph, self._sizes, self._names
        theirs, ours = names.layer.format(layer), f"layer.{layer}"
        width, inner = sizes.width, sizes.inner
        merged = self._attended(layer, x, bias)
        residual = graph.node("Add", merged, x, name=f"{ours}.attention.residual")
        middle = self._norm(f"{theirs}.{names.attention_norm}", residual, f"{ours}.middle")

        wide = self._linear(
            f"{theirs}.{names.widened}", middle, f"{ours}.intermediate.dense", (width, inner)
        )
        active = blocks.activation(graph, wide, sizes.activation, f"{ours}.active")
        narrow = self._linear(
            f"{theirs}.{names.narrowed}", active, f"{ours}.output.dense", (inner, width)
        )
        residual = graph.node("Add", narrow, middle, name=f"{ours}.residual")
        return self._norm(f"{theirs}.{names.layer_norm}", residual, name)

    def _attended(self, layer: int, x: str, bias: str) -> str:
        """Self-attention and its projection: ``[B,L,E]`` → ``[B,L,E]``."""
        names = self._names
        theirs, ours = names.layer.format(layer), self._ours
        square = self._sizes.width, self._sizes.width
        parts = [
            self._linear_of(f"{theirs}.{tensor}", square)
            for tensor in (names.query, names.key, names.value)
        ]
        query, key, value = self._joined_heads(x, blocks.joined(parts))
        projection = f"{ours}.output.dense"
        made = Layer(
            hidden=x,
            query=query,
            key=key,
            value=value,
            context=f"{ours}.context",
            projection=f"{projection}.weight",
            scale=1 / math.sqrt(self._sizes.head_size),
        )
        context = self._attention(made, bias)
        return self._linear(f"{theirs}.{names.merged}", context, projection)

    # --- Parameters ---

    def _table(self, kind: str, name: str, count: int) -> str:
        array = self._take(f"{name}.weight", (count, self._sizes.width))
        return self._graph.constant(f"embeddings.{kind}_embeddings", array)

    def _linear(self, theirs: str, x: str, name: str, sizes: tuple[int, int] | None = None) -> str:
        square = self._sizes.width, self._sizes.width
        return blocks.linear(self._graph, x, self._linear_of(theirs, sizes or square), name)

    def _norm(self, theirs: str, x: str, name: str) -> str:
        # Checkpoints converted from TensorFlow say gamma and beta.
        if self._has(f"{theirs}.gamma"):
            width = (self._sizes.width,)
            norm = Norm(self._take(f"{theirs}.gamma", width), self._take(f"{theirs}.beta", width))
        else:
            norm = self._norm_of(theirs)
        return blocks.layer_norm(self._graph, x, norm, self._sizes.epsilon, name)
