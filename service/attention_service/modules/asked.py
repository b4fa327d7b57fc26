"""What a call asks of the texts that it sends, resolved against the module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from attention_service.attention.job import Shapes
from attention_service.attention.selection import no_such
from attention_service.modules.analyses.flow import MOST_UNITS
from attention_service.modules.tokens import Tokens
from attention_wire.answers import HeadClasses, ModuleInfo, Statistics
from attention_wire.problems import ProblemError
from attention_wire.schemas import TextRequest, TextReturn, TextWeightsSelection
from attention_wire.units import Units

CLASSES = tuple(name for name in HeadClasses.model_fields if name != "labels")
STATISTICS = tuple(Statistics.model_fields)
_LABEL_BYTES = max(len(f'"{name}",') for name in CLASSES)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a call asks of each of its texts.

    Attributes:
        returns: what is to be answered.
        of_words: whether rows and columns are words.
        layers: in the order asked.
        heads: likewise.
        ablated: layer → heads whose context is zeroed.
        info: of the module.
    """

    returns: TextReturn
    of_words: bool
    layers: Sequence[int]
    heads: Sequence[int]
    ablated: Mapping[int, Sequence[int]]
    info: ModuleInfo

    @classmethod
    def of(cls, request: TextRequest, info: ModuleInfo, *, is_layered: bool) -> Self:
        """Resolve a request.

        Args:
            request: the call.
            info: of the module.
            is_layered: whether that runs layer by layer.

        Raises:
            ProblemError: a layer or head does not exist, or the module does not give what is
                asked for.
        """
        ablated: dict[int, list[int]] = {}
        for index, (layer, head) in enumerate(request.ablate or ()):
            counts = {"layer": (layer, info.num_layers), "head": (head, info.num_heads)}
            for what, (number, count) in counts.items():
                if number >= count:
                    raise no_such(("ablate", index), what, number, info.name, count)
            ablated.setdefault(layer, []).append(head)
        found = cls(
            returns=request.return_,
            of_words=request.unit == "word",
            layers=_select("layer", request.layers, info.name, info.num_layers),
            heads=_select("head", request.heads, info.name, info.num_heads),
            ablated=ablated,
            info=info,
        )
        if not is_layered:
            found._check_whole()
        if found.returns.blocks and request.text_pair is None:
            raise ProblemError.of_field(
                ("return", "blocks"), "are of the two texts of a pair: send text_pair too"
            )
        return found

    def _check_whole(self) -> None:
        selection = self.selection
        needs = {
            ("ablate",): bool(self.ablated),
            ("return", "inputs"): self.returns.inputs,
            ("return", "weights", "value_weighted"): bool(selection and selection.value_weighted),
        }
        for loc, is_asked in needs.items():
            if is_asked:
                raise ProblemError.of_field(
                    loc,
                    f"is not given by {self.info.name!r}: its graph is run as a whole, since its "
                    "manifest does not say where layers begin; export the model with "
                    "attention-service",
                )

    @property
    def is_plain(self) -> bool:
        """Whether output and whole weights of tokens are all that is asked for."""
        asked = self.returns
        return (
            isinstance(asked.weights, bool)
            and not self.ablated
            and not (self.of_words and asked.weights)
            and not (self.mixes_layers or self.of_every_head or asked.inputs)
        )

    @property
    def selection(self) -> TextWeightsSelection | None:
        """The part of the weights that is wanted; None for no weights."""
        weights = self.returns.weights
        if isinstance(weights, bool):
            return TextWeightsSelection() if weights else None
        return weights

    @property
    def mixes_layers(self) -> bool:
        """Whether something of a layer is made of all layers below it."""
        return self.returns.rollout or self.returns.flow

    @property
    def of_every_head(self) -> bool:
        """Whether something is asked of heads that ``heads`` does not name."""
        asked = self.returns
        return asked.entropy or asked.statistics or asked.classes or asked.blocks

    @property
    def looks_at_rows(self) -> bool:
        """Whether weights have to be seen, beyond what the engine gives of them."""
        asked, selection = self.returns, self.selection
        is_weighted = selection is not None and selection.value_weighted
        is_counted = asked.statistics or asked.classes or asked.blocks
        return self.mixes_layers or is_weighted or is_counted

    @property
    def needs_output(self) -> bool:
        """Whether a text runs to the end of the model."""
        return self.returns.output or bool(self.ablated)

    @property
    def depth(self) -> int:
        """How many layers attend."""
        if self.needs_output:
            return self.info.num_layers
        is_read = self.selection or self.mixes_layers or self.of_every_head or self.returns.inputs
        return max(self.layers) + 1 if is_read else 0

    def units(self, tokens: Tokens) -> Units:
        """What rows and columns of a text are.

        Raises:
            ProblemError: it has fewer than the rows asked for, or more than flow takes.
        """
        ids, special, segments = (
            tokens.fields[name] for name in ("token_ids", "special_tokens_mask", "segments")
        )
        units = (
            Units.of_words(ids, tokens.fields["word_ids"], special, segments)
            if self.of_words
            else Units.of_tokens(ids, special, segments)
        )
        rows = self.rows(units)
        highest = max(rows, default=-1)
        what = "word" if self.of_words else "token"
        if highest >= len(units):
            loc = ("return", "weights", "queries")
            raise no_such(loc, what, highest, "a text", len(units))
        if self.returns.flow and len(units) > MOST_UNITS:
            raise ProblemError.of_field(
                ("return", "flow"),
                f"is computed for {MOST_UNITS} {what}s at most, and a text has {len(units)}: send "
                "a shorter one, or ask for rollout",
            )
        return units

    def rows(self, units: Units) -> range | tuple[int, ...]:
        """The rows of the weights that are wanted, in the order asked."""
        queries = None if self.selection is None else self.selection.queries
        if queries is None:
            return range(len(units))
        if isinstance(queries, list):
            return tuple(queries)
        return range(queries.start, queries.stop)

    def top_k(self, units: Units) -> int | None:
        """How many of each row's weights are wanted; None for all."""
        k = None if self.selection is None else self.selection.top_k
        return None if k is None else min(k, len(units))

    def shapes(self, tokens: Tokens, units: Units) -> Shapes:
        """The tensors of a text's result at most, name → shape and dtype."""
        asked, info = self.returns, self.info
        layers, length, count = len(self.layers), len(tokens), len(units)
        of_heads, hidden = (layers, info.num_heads), (length, info.embed_dim)
        of_classes: dict[str, tuple[int, ...]] = {f"classes.{name}": of_heads for name in CLASSES}
        of_classes["classes.labels"] = (*of_heads, _LABEL_BYTES)
        # Keys and values may have fewer heads.
        inputs = (layers, 3, info.num_heads, length, info.head_dim)
        parts: list[tuple[object, dict[str, tuple[int, ...]]]] = [
            (asked.output, {"output": hidden}),
            (self.ablated, {"change": hidden}),
            (self.selection, self._weights(units)),
            (asked.entropy, {"entropy": (*of_heads, count)}),
            (asked.statistics, {f"statistics.{name}": of_heads for name in STATISTICS}),
            (asked.classes, of_classes),
            (asked.rollout, {"rollout": (layers, count, count)}),
            (asked.flow, {"flow": (layers, count, count)}),
            (asked.blocks, {"blocks": (*of_heads, 2, 2)}),
            (asked.inputs, {"inputs": inputs}),
        ]
        whole_numbers = {"weights.indices": "int32"}
        return {
            name: (shape, whole_numbers.get(name, "float32"))
            for is_asked, shapes in parts
            if is_asked
            for name, shape in shapes.items()
        }

    def _weights(self, units: Units) -> dict[str, tuple[int, ...]]:
        reduced = self.selection is not None and self.selection.reduce is not None
        rows = (len(self.layers), 1 if reduced else len(self.heads), len(self.rows(units)))
        k = self.top_k(units)
        if k is None:
            return {"weights": (*rows, len(units))}
        of_row = (*rows, k)
        return {"weights.indices": of_row, "weights.values": of_row, "weights.rest": rows}


def _select(what: str, indices: list[int] | str, module: str, count: int) -> list[int]:
    if isinstance(indices, str):
        return list(range(count))
    if max(indices) >= count:
        raise no_such(f"{what}s", what, max(indices), module, count)
    return indices
