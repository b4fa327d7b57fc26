"""A text model run as one graph, which forms the weights of every layer.

So run graphs that somebody else exported, whose manifest does not say where to cut them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from attention_service.attention.engine import Session
from attention_service.attention.lanes import Cancelled, never
from attention_service.modules.manifest import Outputs, Probe
from attention_service.modules.tokens import Tokens, feeds
from attention_wire.answers import ModuleInfo
from attention_wire.tensors import Array

# Scores of one layer that are formed when a graph is tried.
_TRIED_BYTES = 2**27


@dataclass(frozen=True, slots=True)
class WholeModel:
    """A text graph in one session.

    Attributes:
        session: of it.
        outputs: the names of what it gives.
        num_heads: of each layer.
    """

    session: Session
    outputs: Outputs
    num_heads: int

    def try_text(self, tokens: Tokens) -> None:
        """Run a text, or as much of it as can be run in some memory.

        Raises:
            EngineError: it does not run.
        """
        most = math.isqrt(_TRIED_BYTES // (4 * self.num_heads))
        given = {name: array[:, :most] for name, array in feeds([tokens]).items()}
        self.begin(given, 0, never)

    def shapes(self, texts: Sequence[Tokens], info: ModuleInfo) -> Probe:
        """The shapes of what a run over texts of one length gives, and those expected."""
        batch, length = len(texts), len(texts[0])
        forward = self.begin(feeds(texts), info.num_layers, never)
        weights = (batch, info.num_heads, length, length)
        found: Probe = {
            name: (array.shape, weights)
            for name, array in zip(self.outputs.weights, forward.weights, strict=True)
        }
        found[self.outputs.output] = forward.output.shape, (batch, length, info.embed_dim)
        return found

    @property
    def provider(self) -> str:
        """The execution provider that runs it."""
        return self.session.provider

    def begin(
        self,
        given: Mapping[str, Array],
        depth: int,
        cancelled: Callable[[], bool],
    ) -> WholeForward:
        """Run texts, and hold the weights of the layers up to a depth.

        Args:
            given: the graph's inputs, ``[B,L]``.
            depth: how many layers' weights are wanted.
            cancelled: looked at before the run.

        Raises:
            Cancelled: the call is over.
        """
        if cancelled():
            raise Cancelled
        names = self.outputs.weights[:depth]
        found = self.session.run([*names, self.outputs.output], given)
        return WholeForward([found[name] for name in names], found[self.outputs.output])


class WholeForward:
    """One run of texts, all of it done, seen layer by layer.

    Attributes:
        weights: of each layer ``[B,H,L,L]``.
        output: the last hidden state ``[B,L,E]``.
        layer: at which it is.
    """

    def __init__(self, weights: list[Array], output: Array) -> None:
        self.weights = weights
        self.output = output
        self.layer = 0

    def attend_rows(
        self, rows: Sequence[slice], heads: tuple[int, ...], _context: Array | None = None
    ) -> Iterator[Array]:
        """The weights of the first text, some rows after the other, ``[heads,rows,L]``."""
        weights = self.weights[self.layer][0]
        for block in rows:
            yield weights[list(heads), block]

    def advance(self, _context: Array | None = None) -> None:
        """Go on to the next layer."""
        self.layer += 1
