"""A cut text graph, loaded: the segments that run between the attention of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from attention_service.attention.engine import Engine, Session
from attention_service.modules.cutting import CutGraph
from attention_service.modules.manifest import Layer, Manifest
from attention_wire.tensors import Array

# Threads of all segments together: each has its own, which sleep while others run.
_MOST_THREADS = 512
# Parameters behind the embeddings that a model may hold twice.
_JOINED_BYTES = 2**26


@dataclass(frozen=True, slots=True)
class Segments:
    """The segments of a text graph, and what lies between them.

    Attributes:
        layers: how each attends.
        segments: one more than there are layers.
        engine: computes the attention.
        num_heads: of the queries.
        norms: for each layer ``[H,Dv,Dv]``: W·Wᵀ of each head's part W of the projection, so
            that |v·W|² = v·W·Wᵀ·vᵀ.
        joined: all segments behind the first, and the attention between them, for short texts;
            None for a model that is large, whose layers do not see every key, or of whose heads
            it is not known that there are as many of keys as of queries.
    """

    layers: Sequence[Layer]
    segments: Sequence[Session]
    engine: Engine
    num_heads: int
    norms: Sequence[Array]
    joined: Session | None

    @classmethod
    def load(cls, path: Path, layers: Sequence[Layer], manifest: Manifest, engine: Engine) -> Self:
        """Cut a graph and load its segments.

        Raises:
            CutError: it cannot be cut as its layers say.
            EngineError: ONNX Runtime refuses a segment.
        """
        num_heads, embed_dim = manifest.num_heads, manifest.embed_dim
        graph = CutGraph(path, layers, manifest.outputs.output)
        norms = [
            _gram(graph.projection(layer, num_heads, embed_dim), num_heads) for layer in layers
        ]
        threads = min(engine.threads, 1 + _MOST_THREADS // (len(layers) + 1))
        segments, sizes = [], []
        for segment in graph.segments():
            segments.append(engine.load(segment, threads))
            sizes.append(len(segment))
        joined = None
        if sum(sizes[1:]) <= _JOINED_BYTES and _are_plain(layers, segments, num_heads):
            joined = engine.load(graph.joined())
        return cls(layers, segments, engine, num_heads, norms, joined)

    @property
    def sees_all(self) -> bool:
        """Whether every token of a text sees every other, in every layer."""
        return all(layer.sees_all for layer in self.layers)

    @property
    def provider(self) -> str:
        """The execution provider that runs the segments."""
        return self.segments[-1].provider


def _are_plain(layers: Sequence[Layer], segments: Sequence[Session], num_heads: int) -> bool:
    """Whether every row of every layer sees every key, and every query head has its own keys."""
    heads = {
        segment.shapes[name][1:2]
        for layer, segment in zip(layers, segments, strict=False)
        for name in (layer.query, layer.key, layer.value)
    }
    return heads == {(num_heads,)} and all(layer.sees_all for layer in layers)


def _gram(projection: Array, num_heads: int) -> Array:
    parts = projection.reshape(num_heads, -1, projection.shape[1]).astype(np.float64)
    gram: Array = (parts @ parts.transpose(0, 2, 1)).astype(np.float32)
    return gram
