"""One run of texts through a layered model, at the attention of one layer after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from attention_service.attention.compute import compute
from attention_service.attention.graphs import TileSpec
from attention_service.attention.lanes import Cancelled
from attention_service.attention.planner import plan
from attention_service.attention.selection import Wants
from attention_service.modules.cutting import weights_of
from attention_service.modules.layer_attention import FLOAT32, bias_of, call_of, wanted
from attention_service.modules.manifest import Layer
from attention_service.modules.segments import Segments
from attention_wire.tensors import Array

# Scores of a layer that are formed at once, by all threads: a wait for tiles would be most of
# what they take. More of them, where every weight is wanted anyway: that is some milliseconds.
SMALL_BYTES = 2**21
WHOLE_BYTES = 2**24


class Forward:
    """One run of texts, at the attention of one layer after the other.

    Attributes:
        layer: at which it is.
        heads: query ``[B,H,L,D]``, key ``[B,Hkv,L,D]`` and value ``[B,Hkv,L,Dv]`` of that layer.
        output: the last hidden state ``[B,L,E]``, once the last layer has advanced.
    """

    def __init__(
        self,
        model: Segments,
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
        call = call_of(self.options, self.heads, self._lengths, wants)
        how = plan(call, engine.target(FLOAT32))
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
        if self._takes_at_most(WHOLE_BYTES if is_every else SMALL_BYTES):
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
        if self._takes_at_most(SMALL_BYTES):
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
            call = call_of(self.options, (part, key, value), self._lengths, wants, block.start)
            how = plan(call, engine.target(FLOAT32))
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
        if self._takes_at_most(SMALL_BYTES):
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

    def finish(self, into: Mapping[int, Array]) -> None:
        """Go from the first layer to the output by one run of all layers, joined.

        Args:
            into: layer → ``[1,H,L,L]``, to be filled with its weights.
        """
        model, layer = self._model, self.options
        if model.joined is None or self._hidden is None or self.layer:
            raise ValueError("a run is finished from its first layer, by a model that is joined")
        names = layer.hidden, layer.query, layer.key, layer.value
        given = {**self._given, **dict(zip(names, (self._hidden, *self.heads), strict=True))}
        given = {name: given[name] for name in model.joined.inputs}
        (output,) = model.segments[-1].outputs
        places = {weights_of(model.layers[at]): place for at, place in into.items()}
        self.output = model.joined.run([output, *places], given, places)[output]
        self._hidden = None
        self.layer = len(model.layers)

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
            self._biases[seen] = bias_of(layer, length, self._lengths, (count, kv_heads))
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
        given = {**self._given, **values}
        given = {name: given[name] for name in segment.inputs}
        if self.layer == len(model.layers):
            (self.output,) = segment.run(list(segment.outputs), given).values()
            self._hidden = None
            return
        layer = model.layers[self.layer]
        names = [layer.hidden, layer.query, layer.key, layer.value]
        found = segment.run(names, given)
        self._hidden = found[layer.hidden]
        self.heads = found[layer.query], found[layer.key], found[layer.value]
