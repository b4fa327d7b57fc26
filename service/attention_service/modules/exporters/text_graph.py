"""The graph of a text model and its manifest: what all families of them have in common.

A family derives from :class:`TextGraph`, goes from the tokens to the last hidden state, and
describes each layer's attention as the manifest has it. Inputs, outputs, attention, the manifest
and what may be left over of a checkpoint are here.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from attention_service.modules.exporters import blocks
from attention_service.modules.exporters.attention import (
    Attended,
    attention,
    merge_heads,
    repeat_heads,
    split_heads,
)
from attention_service.modules.exporters.blocks import FLOAT, INT64, Graph, Linear, Norm
from attention_service.modules.exporters.errors import ExportError
from attention_service.modules.exporters.family import Built
from attention_service.modules.exporters.weights import Parameter, Weights
from attention_service.modules.manifest import Layer, Manifest, Outputs


@dataclass(frozen=True, slots=True)
class TextSizes:
    """A text model in numbers.

    Attributes:
        width: E, of a hidden state.
        layers: how many.
        heads: H, of each layer.
        kv_heads: heads of keys and values, each shared by H/kv_heads query heads.
        head_size: D, of one head.
        longest: tokens that a text may have.
    """

    width: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    longest: int


class Inputs(NamedTuple):
    """Names of the graph's inputs, int64 ``[B,L]`` each."""

    input_ids: str
    attention_mask: str
    token_type_ids: str


def text_manifest(sizes: TextSizes, layers: list[Layer]) -> Manifest:
    """The manifest of a text module whose graph :class:`TextGraph` makes."""
    return Manifest(
        kind="text",
        num_heads=sizes.heads,
        num_layers=sizes.layers,
        embed_dim=sizes.width,
        key_dim=sizes.width,
        value_dim=sizes.width,
        head_dim=sizes.head_size,
        max_length=sizes.longest,
        outputs=Outputs(output="output", weights=[_weights_name(i) for i in range(sizes.layers)]),
        layers=layers,
        files={},
    )


def _weights_name(layer: int) -> str:
    return f"weights.{layer}"


class TextGraph(ABC):
    """Builds the graph of one text model.

    Args:
        name: of the graph.
        sizes: of the model.
        weights: its tensors.
        prefix: of their names inside a model for a task; a model alone may have bare names.
        first: a tensor that every such model has; it tells whether the names have the prefix.
    """

    def __init__(
        self, name: str, sizes: TextSizes, weights: Weights, *, prefix: str, first: str
    ) -> None:
        self._text = sizes
        self._weights = weights
        self._prefix = prefix if f"{prefix}{first}" in weights else ""
        self._graph = Graph(name)
        self._layers: list[Layer] = []

    def built(self) -> Built:
        """The whole module: three inputs, the last hidden state, and the weights by layer.

        Raises:
            ExportError: a tensor is missing or has another shape, one is there that the family
                does not know, or the activation is not known.
        """
        graph, sizes = self._graph, self._text
        inputs = Inputs(*(graph.input(name, INT64, ["batch", "length"]) for name in Inputs._fields))
        output = self._output(inputs)
        _refuse_surplus(self._weights, self._prefix)
        graph.output(output, FLOAT, ["batch", "length", sizes.width])
        manifest = text_manifest(sizes, self._layers)
        for weights in manifest.outputs.weights:
            graph.output(weights, FLOAT, ["batch", sizes.heads, "length", "keys"])
        return Built(graph.model(), manifest)

    @abstractmethod
    def _output(self, inputs: Inputs) -> str:
        """Add the model to the graph, layer by layer; the result is named ``output``."""

    # --- Attention ---

    @property
    def _ours(self) -> str:
        """What the names of the attention begin with that comes next."""
        return f"layer.{len(self._layers)}.attention"

    def _split_heads(self, x: str, name: str, heads: int | None = None) -> str:
        """``[B,L,H·D]`` → ``[B,H,L,D]``."""
        count = heads or self._text.heads
        return split_heads(self._graph, x, count, self._text.head_size, name)

    def _joined_heads(self, x: str, joined: Linear) -> tuple[str, str, str]:
        """Query, key and value, ``[B,H,L,D]`` each, of one matrix ``[3·H·D,E]`` for the three.

        One product and one transposition of all cost less than three of each.
        """
        graph, ours, count = self._graph, self._ours, self._text.heads
        projected = blocks.linear(graph, x, joined, f"{ours}.joined")
        heads = self._split_heads(projected, f"{ours}.joined_heads", 3 * count)
        names = f"{ours}.query_heads", f"{ours}.key_heads", f"{ours}.value_heads"
        query, key, value = graph.split(heads, names, axis=1, name=f"{ours}.heads")
        return query, key, value

    def _attention(self, layer: Layer, bias: str) -> str:
        """Self-attention as a layer of the manifest has it: the merged context ``[B,L,H·D]``.

        Args:
            layer: the next one; its ``context`` is the name to give.
            bias: added to the scores, broadcast to ``[B,H,L,L]``; it has what the layer says of
                causality and windows in it.
        """
        graph, sizes, ours = self._graph, self._text, self._ours
        shared = sizes.kv_heads, sizes.heads // sizes.kv_heads, sizes.head_size
        heads = (
            layer.query,
            repeat_heads(graph, layer.key, shared, f"{ours}.key_repeated"),
            repeat_heads(graph, layer.value, shared, f"{ours}.value_repeated"),
        )
        attended = attention(
            graph,
            heads,
            scale=graph.constant(f"{ours}.scale", np.array(layer.scale, np.float32)),
            bias=bias,
            name=f"{ours}.",
            names=Attended(layer.context, _weights_name(len(self._layers))),
        )
        wide = sizes.heads * sizes.head_size
        merged = merge_heads(graph, attended.context, wide, f"{ours}.merged")
        self._layers.append(layer)
        return merged

    # --- Parameters by the names of transformers ---

    def _has(self, name: str) -> bool:
        return f"{self._prefix}{name}" in self._weights

    def _take(self, name: str, shape: tuple[int, ...]) -> Parameter:
        return self._weights.take(f"{self._prefix}{name}", shape)

    def _linear_of(self, name: str, sizes: tuple[int, int], *, has_bias: bool = True) -> Linear:
        """Parameters of ``torch.nn.Linear`` by the numbers of its inputs and outputs."""
        size_in, size_out = sizes
        weight = self._take(f"{name}.weight", (size_out, size_in))
        return Linear(weight, self._take(f"{name}.bias", (size_out,)) if has_bias else None)

    def _norm_of(self, name: str, *, has_bias: bool = True) -> Norm:
        """Parameters of a layer norm over hidden states."""
        width = (self._text.width,)
        weight = self._take(f"{name}.weight", width)
        return Norm(weight, self._take(f"{name}.bias", width) if has_bias else None)


# --- What may be left over of a checkpoint -------------------------------------------------

# Beside a model whose names have no prefix stand the heads of tasks, by their names in
# transformers; inside of any model, what was saved and is no parameter: tables of positions,
# rotary frequencies, causal masks, and the pooler behind the last hidden state.
_EXTRAS = re.compile(
    r"""
    (?: cls | classifier | pre_classifier | lm_head | score | qa_outputs | predictions | head
      | multiple_choice_head | sequence_summary | vocab_\w+ ) \. .*
    | (?: pooler | .*\.pooler ) \. .*
    | (?: .*\. )? (?: position_ids | inv_freq )
    | decoder\. (?: weight | bias )
    | embeddings\.token_type_ids
    | h\.\d+\.attn\. (?: bias | masked_bias )
    """,
    re.VERBOSE,
)
_NAMED = 3


def _refuse_surplus(weights: Weights, prefix: str) -> None:
    """Refuse tensors inside of the model that nothing was made of: they would change what it is.

    Args:
        weights: after all that belongs to the model was taken.
        prefix: of the model's names; what has it not is outside of the model, a task's head.

    Raises:
        ExportError: as said.
    """
    inside = (name for name in weights.left() if name.startswith(prefix))
    surplus = [name for name in inside if not _EXTRAS.fullmatch(name.removeprefix(prefix))]
    if not surplus:
        return
    named = ", ".join(map(repr, surplus[:_NAMED])) + (", …" if len(surplus) > _NAMED else "")
    raise ExportError(
        f"the weights hold {len(surplus)} more than config.json speaks of ({named}), and without "
        "them other values would be computed: is config.json that of this model? Merge an adapter "
        "into the model first; export another architecture to ONNX yourself and write "
        "module.json, see docs/models.md"
    )
