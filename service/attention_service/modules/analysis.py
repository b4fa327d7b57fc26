"""One text's result: its way through the layers, and what is taken of each.

No matrix is formed but those that are answered, and the mean of a layer's heads where rollout
or flow need it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from attention_service.attention.lanes import Cancelled
from attention_service.modules.analyses import measures, rollout
from attention_service.modules.analyses.flow import flow
from attention_service.modules.asked import Asked
from attention_service.modules.forward import Forward
from attention_service.modules.layer_attention import wanted
from attention_service.modules.layered import LayeredModel
from attention_service.modules.selected import SelectedWeights
from attention_service.modules.tokens import Tokens, feeds
from attention_service.modules.whole import WholeForward, WholeModel
from attention_wire.tensors import Array
from attention_wire.units import Units

# Weights that are looked at together.
_BLOCK_ELEMENTS = 2**21
BLOCK_BYTES = 4 * _BLOCK_ELEMENTS


class Tap(Protocol):
    """What takes in the weights of a layer, some rows after the other."""

    def add(self, rows: slice, weights: Array) -> None:
        """Take the weights ``[H,R,U]`` of some units' rows."""
        ...


class Analysis:
    """What is asked of one text.

    Args:
        model: which runs it.
        asked: of it.
        tokens: of it.
        units: what rows and columns are.
        cancelled: looked at between layers, and between tiles.
    """

    def __init__(
        self,
        model: LayeredModel | WholeModel,
        asked: Asked,
        tokens: Tokens,
        units: Units,
        cancelled: Callable[[], bool],
    ) -> None:
        self._model = model
        self._asked = asked
        self._tokens = tokens
        self._units = units
        self._cancelled = cancelled
        self._found: dict[int, dict[str, Any]] = {}
        self._rollout: Array | None = None
        self._means: list[Array] = []

    def result(self) -> dict[str, Any]:
        """The members of the result.

        Raises:
            Cancelled: the call is over.
        """
        asked = self._asked
        forward = self._begin()
        for layer in range(asked.depth):
            is_end = layer + 1 == asked.depth and not asked.needs_output
            context = self._attend(forward, layer, needs_context=not is_end)
            if context is not None and layer in asked.ablated:
                context[:, asked.ablated[layer]] = 0
            if not is_end:
                forward.advance(context)
        layers = [self._found[layer] for layer in asked.layers if layer in self._found]
        result = _of_layers(layers)
        if asked.of_words:
            fields = self._tokens.fields
            words = self._units.words(fields["tokens"], fields["offsets"], self._tokens.texts)
            result["words"] = words.model_dump()
        if asked.needs_output and forward.output is not None:
            output = forward.output[0]
            if asked.returns.output:
                result["output"] = output
            if asked.ablated:
                result["change"] = output - self._whole_output()
        return result

    def _begin(self) -> Forward | WholeForward:
        given = feeds([self._tokens])
        if isinstance(self._model, LayeredModel):
            return self._model.begin(given, [len(self._tokens)], self._cancelled)
        return self._model.begin(given, self._asked.depth, self._cancelled)

    def _whole_output(self) -> Array:
        """What the model gives if nothing is ablated, ``[L,E]``."""
        forward = self._begin()
        for _ in range(self._asked.info.num_layers):
            forward.advance(_context_alone(forward))
        if forward.output is None:
            raise ValueError("the run is not at its end")
        whole: Array = forward.output[0]
        return whole

    # --- One layer ---

    def _attend(
        self, forward: Forward | WholeForward, layer: int, *, needs_context: bool
    ) -> Array | None:
        """Take what is asked of a layer; its context ``[1,H,L,Dv]``, where that is needed."""
        asked, found = self._asked, dict[str, Any]()
        is_asked = layer in asked.layers
        if is_asked:
            self._found[layer] = found
        if is_asked and asked.returns.inputs and isinstance(forward, Forward):
            found["inputs"] = _inputs(forward)
        of_weights = is_asked and (asked.selection is not None or asked.of_every_head)
        if not (of_weights or asked.mixes_layers):
            return _context_alone(forward) if needs_context else None
        is_direct = self._units.is_whole and not asked.looks_at_rows
        if is_direct and isinstance(forward, Forward):
            return self._directly(forward, found, needs_context=needs_context)
        return self._by_rows(forward, found, is_asked=is_asked, needs_context=needs_context)

    def _directly(
        self, forward: Forward, found: dict[str, Any], *, needs_context: bool
    ) -> Array | None:
        """By what the engine gives by itself."""
        asked, units = self._asked, self._units
        selection = asked.selection
        arrays = forward.attend(
            wanted(
                asked.heads,
                asked.rows(units),
                output=needs_context,
                weights=selection is not None,
                entropy=asked.returns.entropy,
                reduce=None if selection is None else selection.reduce,
                top_k=asked.top_k(units),
            )
        )
        context = arrays.pop("output", None)
        found |= {name: array[0] for name, array in arrays.items()}
        return context

    def _by_rows(
        self,
        forward: Forward | WholeForward,
        found: dict[str, Any],
        *,
        is_asked: bool,
        needs_context: bool,
    ) -> Array | None:
        """By a look at the weights, some rows after the other."""
        asked, units, count = self._asked, self._units, self._asked.info.num_heads
        every = tuple(range(count))
        heads = every if is_asked and asked.of_every_head else tuple(asked.heads)
        own = [heads.index(head) for head in asked.heads]
        taps = self._taps(count) if is_asked else {}
        mean = measures.Mean(len(own), units) if asked.mixes_layers else None
        selected = None
        if is_asked and asked.selection is not None:
            rows, k = asked.rows(units), asked.top_k(units)
            selected = SelectedWeights(len(own), len(units), rows, asked.selection.reduce, k)
        carried = None
        if asked.selection is not None and asked.selection.value_weighted:
            carried = _layered(forward).carried()[0][list(heads)][:, None]

        # A text may have no tokens at all, where a tokenizer adds none of its own.
        row = len(heads) * max(len(self._tokens), 1)
        blocks = list(units.blocks(max(1, _BLOCK_ELEMENTS // row)))
        context = None
        if needs_context and isinstance(forward, Forward):
            context = forward.empty_context()
        parts = forward.attend_rows([tokens for _, tokens in blocks], heads, context)
        for (rows_of, _), weights in zip(blocks, parts, strict=True):
            merged = units.merge(weights, rows_of)
            for tap in taps.values():
                tap.add(rows_of, merged)
            chosen = merged if own == list(range(len(heads))) else merged[own]
            if mean is not None:
                mean.add(rows_of, chosen)
            if selected is not None and carried is None:
                selected.add(rows_of, chosen)
            elif selected is not None:
                selected.add(rows_of, units.merge(weights * carried, rows_of)[own])
        found |= {} if selected is None else selected.arrays
        found |= _results(taps)
        if mean is not None:
            self._mix(mean.result(), found, is_asked=is_asked)
        return context

    def _taps(self, num_heads: int) -> dict[str, Tap]:
        """What takes in the weights of every head, by the names of the result."""
        asked, units = self._asked.returns, self._units
        kinds: dict[str, Callable[[int, Units], Tap]] = {
            "entropy": measures.Entropy,
            "statistics": measures.Statistics,
            "classes": measures.Classes,
            "blocks": measures.Blocks,
        }
        return {n: kind(num_heads, units) for n, kind in kinds.items() if getattr(asked, n)}

    def _mix(self, mean: Array, found: dict[str, Any], *, is_asked: bool) -> None:
        """Rollout and flow up to this layer."""
        asked = self._asked.returns
        if asked.rollout:
            self._rollout = rollout.step(mean, self._rollout)
            found["rollout"] = self._rollout.astype(np.float32)
        if asked.flow:
            self._means.append(mean)
            if is_asked:
                found["flow"] = flow(self._means, self._check)

    def _check(self) -> None:
        if self._cancelled():
            raise Cancelled


def _context_alone(forward: Forward | WholeForward) -> Array | None:
    """A layer's context, where nothing else is asked of it; None where nobody needs it."""
    if isinstance(forward, WholeForward):
        return None
    return forward.context()


def _layered(forward: Forward | WholeForward) -> Forward:
    if isinstance(forward, WholeForward):
        raise TypeError("a graph that runs as a whole shows no keys and values")
    return forward


def _inputs(forward: Forward) -> dict[str, Any]:
    layer, (query, key, value) = forward.options, forward.heads
    return {
        "query": query,
        "key": key,
        "value": value,
        "scale": layer.scale,
        "is_causal": layer.is_causal,
        "left_window_size": layer.left_window_size,
        "right_window_size": layer.right_window_size,
    }


def _results(taps: Mapping[str, Any]) -> dict[str, Any]:
    """What taps have taken in, members of objects by dotted names."""
    found: dict[str, Any] = {}
    for name, tap in taps.items():
        result = tap.result()
        if isinstance(result, Mapping):
            found |= {f"{name}.{member}": array for member, array in result.items()}
        else:
            found[name] = result
        if isinstance(tap, measures.Classes):
            found["classes.labels"] = tap.labels()
    return found


def _of_layers(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What was found of each layer as one: arrays stacked, the rest in lists."""
    result: dict[str, Any] = {}
    for name in layers[0] if layers else ():
        parts = [layer[name] for layer in layers]
        whole = np.stack(parts) if isinstance(parts[0], np.ndarray) else parts
        parent, _, member = name.rpartition(".")
        (result.setdefault(parent, {}) if parent else result)[member] = whole
    return result
