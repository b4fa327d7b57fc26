"""A text model run layer by layer, with the attention computed by the engine.

So no more is formed than what is asked for: where nothing is asked of a layer no weights, and
of a long text those of some heads and rows, by tiles.

A short text of a small encoder goes through all layers by one run, of a session beside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from attention_service.attention.engine import Engine, Session
from attention_service.attention.lanes import never
from attention_service.attention.planner import plan
from attention_service.attention.selection import Wants
from attention_service.modules.cutting import CutGraph
from attention_service.modules.forward import SMALL_BYTES, Forward
from attention_service.modules.layer_attention import FLOAT32, call_of
from attention_service.modules.manifest import Layer, Manifest, Probe
from attention_service.modules.tokens import Tokens, feeds
from attention_wire.answers import ModuleInfo
from attention_wire.tensors import Array

# What ONNX Runtime takes for a run of a graph.
_RUN_BYTES = 2**19
# Threads of all segments together: each has its own, which sleep while others run.
_MOST_THREADS = 512
# Parameters behind the embeddings that a model may hold twice.
_JOINED_BYTES = 2**26


@dataclass(frozen=True, slots=True)
class LayeredModel:
    """The segments of a text graph and what lies between them.

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

    def try_text(self, tokens: Tokens) -> None:
        """Run a text as far as its embeddings go, which is where a position may be missing.

        Raises:
            EngineError: it does not run.
        """
        self.begin(feeds([tokens]), [len(tokens)], never)

    def shapes(self, texts: Sequence[Tokens], info: ModuleInfo) -> Probe:
        """The shapes of what a run over texts of one length gives, and those expected."""
        batch, length = len(texts), len(texts[0])
        forward = self.begin(feeds(texts), [length] * batch, never)
        found: Probe = {}
        expected = (batch, info.num_heads, length, info.head_dim)
        for layer, norms in zip(self.layers, self.norms, strict=True):
            query, key, value = (heads.shape for heads in forward.heads)
            found[layer.query] = query, expected
            found[layer.key] = key, (batch, *key[1:2], length, info.head_dim)
            found[layer.value] = value, (*key[:3], norms.shape[1])
            forward.advance(forward.context())
        if forward.output is not None:
            found["output"] = forward.output.shape, (batch, length, info.embed_dim)
        return found

    @property
    def sees_all(self) -> bool:
        """Whether every token of a text sees every other, in every layer."""
        return all(layer.sees_all for layer in self.layers)

    def is_short(self, batch: int, length: int) -> bool:
        """Whether texts go through all layers by one run, if it is this that is asked for.

        It is not looked at for the end of a call, and forms the weights of every layer.
        """
        scores = 4 * self.num_heads * length**2
        return self.joined is not None and batch == 1 and 0 < scores <= SMALL_BYTES

    @property
    def provider(self) -> str:
        """The execution provider that runs the segments."""
        return self.segments[-1].provider

    def begin(
        self,
        given: Mapping[str, Array],
        lengths: Sequence[int],
        cancelled: Callable[[], bool],
    ) -> Forward:
        """Begin to run texts, at the attention of the first layer.

        Args:
            given: the graph's inputs, ``[B,L]``.
            lengths: tokens of each text that are no padding.
            cancelled: looked at between layers and between tiles.
        """
        return Forward(self, given, lengths, cancelled)

    def attention_bytes(self, batch: int, length: int, head_size: int, wants: Wants) -> int:
        """Most memory that a layer's attention takes, with the arrays that it gives.

        Args:
            batch: texts.
            length: tokens of each.
            head_size: of queries and keys.
            wants: what is asked of it.
        """
        scores = 4 * batch * self.num_heads * length**2
        is_whole = wants.top_k is None and wants.reduce is None and not wants.entropy
        if scores <= SMALL_BYTES and is_whole:
            # Those of every head, and the weights that are made of them.
            return 2 * scores + 4 * batch * self.num_heads * length * head_size + _RUN_BYTES
        # Memory that nobody writes to is none.
        heads = np.empty((batch, self.num_heads, length, head_size), np.float32)
        call = call_of(self.layers[0], (heads, heads, heads), [length] * batch, wants)
        return plan(call, self.engine.target(FLOAT32)).peak_bytes


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
