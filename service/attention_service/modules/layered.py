"""A text model run layer by layer, with the attention computed by the engine.

So no more is formed than what is asked for: where nothing is asked of a layer no weights, and
of a long text those of some heads and rows, by tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np

from attention_service.attention.call import AttentionCall
from attention_service.attention.compute import compute
from attention_service.attention.engine import Engine, Session
from attention_service.attention.graphs import TileSpec
from attention_service.attention.lanes import Cancelled, never
from attention_service.attention.masking import Band, Masking
from attention_service.attention.planner import Plan, plan
from attention_service.attention.selection import Wants
from attention_service.attention.shapes import Sizes
from attention_service.modules.cutting import CutGraph
from attention_service.modules.manifest import Layer, Probe
from attention_service.modules.tokens import Tokens, feeds
from attention_wire.schemas import ModuleInfo
from attention_wire.tensors import Array

_FLOAT32 = np.dtype(np.float32)
# Scores of a layer that are formed at once, by all threads: a wait for tiles would be most of
# what they take. More of them, where every weight is wanted anyway: that is some milliseconds.
_SMALL_BYTES = 2**21
_WHOLE_BYTES = 2**24
# Threads of all segments together: each has its own, which sleep while others run.
_MOST_THREADS = 512


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
    """

    layers: Sequence[Layer]
    segments: Sequence[Session]
    engine: Engine
    num_heads: int
    norms: Sequence[Array]

    @classmethod
    def load(
        cls, path: Path, layers: Sequence[Layer], output: str, num_heads: int, engine: Engine
    ) -> Self:
        """Cut a graph and load its segments.

        Raises:
            CutError: it cannot be cut as its layers say.
            EngineError: ONNX Runtime refuses a segment.
        """
        graph = CutGraph(path, layers, output)
        norms = [_gram(graph.projection(layer), num_heads) for layer in layers]
        threads = min(engine.threads, 1 + _MOST_THREADS // (len(layers) + 1))
        segments = [engine.load(segment, threads) for segment in graph.segments()]
        return cls(layers, segments, engine, num_heads, norms)

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
        for layer in self.layers:
            found[layer.query] = forward.heads[0].shape, expected
            forward.advance(forward.context())
        if forward.output is not None:
            found["output"] = forward.output.shape, (batch, length, info.embed_dim)
        return found

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

    def planned(self, batch: int, length: int, head_size: int, wants: Wants) -> Plan:
        """The plan of a layer's attention, for what it takes.

        Args:
            batch: texts.
            length: tokens of each.
            head_size: of queries and keys.
            wants: what is asked of it.
        """
        # Memory that nobody writes to is none.
        heads = np.empty((batch, self.num_heads, length, head_size), np.float32)
        call = _call(self.layers[0], (heads, heads, heads), [length] * batch, wants)
        return plan(call, self.engine.target(_FLOAT32))


class Forward:
    """One run of texts, at the attention of one layer after the other.

    Attributes:
        layer: at which it is.
        heads: query ``[B,H,L,D]``, key ``[B,Hkv,L,D]`` and value ``[B,Hkv,L,Dv]`` of that layer.
        output: the last hidden state ``[B,L,E]``, once the last layer has advanced.
    """

    def __init__(
        self,
        model: LayeredModel,
        given: Mapping[str, Array],
        lengths: Sequence[int],
        cancelled: Callable[[], bool],
    ) -> None:
        self._model = model
        self._given = given
        self._lengths = lengths
        self._cancelled = cancelled
        self._hidden: Array | None = None
        self._biases: dict[tuple[bool, int, int], Array | None] = {}
        self.output: Array | None = None
        self.layer = -1
        self._run({})

    def attend(self, wants: Wants, given: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """What is wanted of this layer's attention: arrays by the names of an answer.

        Args:
            wants: heads and rows of all texts alike.
            given: arrays to be filled.

        Raises:
            Cancelled: the call is over.
        """
        engine = self._model.engine
        call = _call(self.options, self.heads, self._lengths, wants)
        how = plan(call, engine.target(_FLOAT32))
        return compute(call, how, engine, self._cancelled, given)

    def attend_all(
        self, heads: Sequence[Sequence[int]], into: Sequence[Array], *, output: bool
    ) -> Array | None:
        """The weights of every row, and the context ``[B,H,L,Dv]`` if that is wanted.

        Args:
            heads: of each text those of which weights are wanted, in the order asked.
            into: for each text ``[its heads,its length,its length]``, to be filled.
            output: whether the context is wanted.

        Raises:
            Cancelled: the call is over.
        """
        count, length = self.heads[0].shape[1:3]
        every = list(range(count))
        is_every = all(list(own) == every for own in heads)
        names = ("output", "weights") if output else ("weights",)
        if self._takes_at_most(_WHOLE_BYTES if is_every else _SMALL_BYTES):
            place = into[0] if len(into) == 1 and is_every else None
            found = self._at_once(names, place)
        elif len(into) == 1:
            wants = wanted(heads[0], length, output=output, weights=True)
            return self.attend(wants, {"weights": into[0][None]}).get("output")
        else:
            found = self.attend(wanted(every, length, output=output, weights=True))
        for row, (own, place) in enumerate(zip(heads, into, strict=True)):
            size, weights = place.shape[-1], found["weights"][row]
            if not np.shares_memory(weights, place):
                place[...] = weights[list(own), :size, :size]
        return found.get("output")

    def attend_rows(
        self, rows: Sequence[slice], heads: tuple[int, ...], context: Array | None
    ) -> Iterator[Array]:
        """The weights of the first text, some rows after the other, ``[heads,rows,L]``.

        Args:
            rows: in their order.
            heads: of which weights are given.
            context: ``[1,H,L,Dv]``, filled with what attention gives, if that is wanted.

        Raises:
            Cancelled: the call is over.
        """
        engine, (query, key, value) = self._model.engine, self.heads
        if self._takes_at_most(_SMALL_BYTES):
            found = self._at_once(("output", "weights"))
            if context is not None:
                context[...] = found["output"]
            for block in rows:
                yield found["weights"][0][list(heads), block]
            return
        for block in rows:
            part = np.ascontiguousarray(query[:, :, block])
            wants = wanted(
                heads, block.stop - block.start, output=context is not None, weights=True
            )
            call = _call(self.options, (part, key, value), self._lengths, wants, block.start)
            how = plan(call, engine.target(_FLOAT32))
            arrays = compute(call, how, engine, self._cancelled)
            if context is not None:
                context[:, :, block] = arrays["output"]
            yield arrays["weights"][0]

    @property
    def options(self) -> Layer:
        """How this layer attends."""
        return self._model.layers[self.layer]

    def context(self) -> Array:
        """What attention gives, ``[B,H,L,Dv]``, where no weights are wanted.

        Raises:
            Cancelled: the call is over.
        """
        if self._takes_at_most(_SMALL_BYTES):
            return self._at_once(("output",))["output"]
        return self.attend(wanted((), 0, output=True, weights=False))["output"]

    def empty_context(self) -> Array:
        """An array for this layer's context, ``[B,H,L,Dv]``."""
        query, _, value = self.heads
        return np.empty((*query.shape[:3], value.shape[3]), np.float32)

    def carried(self) -> Array:
        """Norms of what each key carries to a row that gives it all weight: ``[B,H,L]``.

        |f(x)| of https://arxiv.org/abs/2004.10102, where f is a head's value and output
        projections.
        """
        value, norms = self.heads[2], self._model.norms[self.layer]
        groups = self._model.num_heads // value.shape[1]
        per_head = np.repeat(value, groups, axis=1)
        squares = ((per_head @ norms) * per_head).sum(axis=-1)
        found: Array = np.sqrt(np.maximum(squares, 0))
        return found

    def advance(self, context: Array | None) -> None:
        """Go on to the next layer, or to the output.

        Args:
            context: what this layer's attention gives, ``[B,H,L,Dv]``.

        Raises:
            Cancelled: the call is over.
        """
        if self._hidden is None or context is None:
            raise ValueError("a run goes on with a layer's context, until its end")
        layer = self.options
        self._run({layer.context: context, layer.hidden: self._hidden})

    def _takes_at_most(self, size: int) -> bool:
        """Whether there are scores, and all of this layer are no more than so many bytes."""
        batch, count, length, _ = self.heads[0].shape
        return bool(0 < 4 * batch * count * length**2 <= size)

    def _at_once(self, outputs: tuple[str, ...], place: Array | None = None) -> dict[str, Array]:
        """``output`` ``[B,H,L,Dv]`` and ``weights`` ``[B,H,L,L]`` by one run of a graph.

        Args:
            outputs: which of them.
            place: where the weights are written, if that is one piece; None for anywhere.
        """
        (batch, count, length, _), layer = self.heads[0].shape, self.options
        kv_heads = self.heads[1].shape[1]
        feeds = {
            name: heads.reshape(batch * kv_heads, -1, heads.shape[3])
            for name, heads in zip(("query", "key", "value"), self.heads, strict=True)
        }
        if "output" not in outputs:
            del feeds["value"]
        feeds["scale"] = np.array(layer.scale, np.float32)
        seen = layer.is_causal, layer.left_window_size, layer.right_window_size
        if seen not in self._biases:
            self._biases[seen] = _bias(layer, length, self._lengths, (count, kv_heads))
        bias = self._biases[seen]
        if bias is not None:
            feeds["bias"] = bias
        spec = TileSpec("float32", tuple(sorted(outputs)), "none" if bias is None else "all")
        into = {}
        if place is not None:
            into["weights"] = place.reshape(batch * kv_heads, -1, length)
        found = self._model.engine.session(spec, is_wide=True).run(outputs, feeds, into)
        return {
            name: array.reshape(batch, count, length, array.shape[2])
            for name, array in found.items()
        }

    def _run(self, values: Mapping[str, Array]) -> None:
        if self._cancelled():
            raise Cancelled
        self.layer += 1
        model = self._model
        segment = model.segments[self.layer]
        feeds = {name: {**self._given, **values}[name] for name in segment.inputs}
        if self.layer == len(model.layers):
            (self.output,) = segment.run(list(segment.outputs), feeds).values()
            self._hidden = None
            return
        layer = model.layers[self.layer]
        names = [layer.hidden, layer.query, layer.key, layer.value]
        found = segment.run(names, feeds)
        self._hidden = found[layer.hidden]
        self.heads = found[layer.query], found[layer.key], found[layer.value]


def wanted(
    heads: Sequence[int],
    rows: int | range | tuple[int, ...],
    *,
    output: bool,
    weights: bool,
    entropy: bool = False,
    reduce: Literal["mean", "max"] | None = None,
    top_k: int | None = None,
) -> Wants:
    """What to ask of a layer's attention.

    Args:
        heads: of which weights are wanted.
        rows: of the weights; a number for so many, all that there are.
        output: whether the context is wanted.
        weights: whether they are.
        entropy: whether that of every head and row is.
        reduce: how the weights of the heads become one, or None.
        top_k: how many of each row's weights are wanted, at most L; None for all.
    """
    return Wants(
        output=output,
        weights=weights,
        lse=False,
        entropy=entropy,
        scores=None,
        present=False,
        plan=False,
        heads=tuple(heads),
        rows=range(rows) if isinstance(rows, int) else rows,
        reduce=reduce,
        top_k=top_k,
    )


def _call(
    layer: Layer,
    heads: tuple[Array, Array, Array],
    lengths: Sequence[int],
    wants: Wants,
    first_row: int = 0,
) -> AttentionCall:
    """A layer's attention of rows from the first one on, which nobody has to validate."""
    query, key, value = heads
    sizes = Sizes(
        query.shape[0], query.shape[1], key.shape[1], query.shape[2], key.shape[2],
        query.shape[3], value.shape[3],
    )  # fmt: skip
    positions = np.arange(first_row, first_row + sizes.q_length)
    masking = Masking(
        sizes,
        _band(layer, positions, sizes.kv_length, lengths),
        mask=None,
        slopes=None,
        query_positions=positions[None],
        key_positions=np.arange(sizes.kv_length),
        query_documents=None,
        key_documents=None,
    )
    return AttentionCall(
        query=query,
        key=key,
        value=value,
        masking=masking,
        scale=layer.scale,
        softcap=0.0,
        sinks=None,
        dtype=_FLOAT32,
        compute_dtype=_FLOAT32,
        rank=4,
        wants=wants,
    )


def _band(layer: Layer, positions: Array, keys: int, lengths: Sequence[int]) -> Band | None:
    """Which keys each row sees: none after it, none far from it, no padding."""
    left, right = layer.left_window_size, layer.right_window_size
    # Padding stands behind the text, where no row of a causal layer looks.
    is_padded = min(lengths) < keys and not layer.is_causal
    if left < 0 and right < 0 and not layer.is_causal and not is_padded:
        return None
    ends = np.array(lengths if is_padded else [keys], np.int64)[:, None]
    low = np.zeros_like(positions) if left < 0 else np.maximum(positions - left, 0)
    if layer.is_causal:
        right = 0 if right < 0 else min(right, 0)
    high = np.full_like(positions, keys) if right < 0 else positions + right + 1
    return Band(
        np.minimum(np.broadcast_to(low, (len(ends), len(low))), ends),
        np.minimum(high, ends),
    )


def _bias(
    layer: Layer, length: int, lengths: Sequence[int], heads: tuple[int, int]
) -> Array | None:
    """What masks a layer's scores ``[N,G·L,L]``, N texts and their key heads; None for nothing.

    Rows of padding see every key: of a row that sees none the softmax would be NaN.
    """
    band = _band(layer, np.arange(length), length, lengths)
    if band is None:
        return None
    keys, (count, kv_heads) = np.arange(length), heads
    seen = (keys >= band.low[..., None]) & (keys < band.high[..., None])
    if len(seen) > 1:
        seen |= keys[:, None] >= np.array(lengths)[:, None, None]
    bias = np.where(seen, np.float32(0), np.float32(-np.inf))
    bias = np.broadcast_to(bias[:, None], (len(bias), count // kv_heads, length, length))
    bias = bias.reshape(len(bias), -1, length)
    return np.repeat(bias, kv_heads, axis=0) if len(bias) > 1 else bias


def _gram(projection: Array, num_heads: int) -> Array:
    parts = projection.reshape(num_heads, -1, projection.shape[1]).astype(np.float64)
    gram: Array = (parts @ parts.transpose(0, 2, 1)).astype(np.float32)
    return gram
