"""A text model run layer by layer, with the attention computed by the engine.

So no more is formed than what is asked for: where nothing is asked of a layer no weights, and
of a long text those of some heads and rows, by tiles.

A short text of a small encoder goes through all layers by one run, of a session beside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from attention_service.attention.lanes import never
from attention_service.attention.planner import plan
from attention_service.attention.selection import Wants
from attention_service.modules.forward import SMALL_BYTES, Forward
from attention_service.modules.layer_attention import FLOAT32, call_of
from attention_service.modules.manifest import Probe
from attention_service.modules.segments import Segments
from attention_service.modules.tokens import Tokens, feeds
from attention_wire.answers import ModuleInfo
from attention_wire.tensors import Array

# What ONNX Runtime takes for a run of a graph.
_RUN_BYTES = 2**19


class LayeredModel(Segments):
    """A text graph in segments, run with the engine's attention between them."""

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

    def is_short(self, batch: int, length: int) -> bool:
        """Whether texts go through all layers by one run, if it is this that is asked for.

        It is not looked at for the end of a call, and forms the weights of every layer.
        """
        scores = 4 * self.num_heads * length**2
        return self.joined is not None and batch == 1 and 0 < scores <= SMALL_BYTES

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
