"""What a call of texts costs: the tensors of its answer, and the memory that it takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from attention_service.attention.job import Shapes
from attention_service.modules.analysis import BLOCK_BYTES
from attention_service.modules.asked import Asked
from attention_service.modules.layer_attention import wanted
from attention_service.modules.layered import LayeredModel
from attention_service.modules.text import TextModule
from attention_service.modules.tokens import Tokens
from attention_wire.units import Units

# Names, dtypes, shapes and offsets of one result's tensors, in any form.
_RESULT_BYTES = 256


@dataclass(frozen=True, slots=True)
class TextCosts:
    """What some texts cost.

    Attributes:
        module: that runs them.
        asked: of each.
        texts: they.
        units: what rows and columns of each are.
    """

    module: TextModule
    asked: Asked
    texts: Sequence[Tokens]
    units: Sequence[Units]

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(len(tokens) for tokens in self.texts)

    @property
    def shapes(self) -> Shapes:
        """The tensors of the answer at most, name → shape and dtype."""
        found: dict[str, tuple[tuple[int, ...], str]] = {}
        for index, (tokens, units) in enumerate(zip(self.texts, self.units, strict=True)):
            for name, like in self.asked.shapes(tokens, units).items():
                found[f"{index}.{name}"] = like
            # What tells of the tokens is JSON, in safetensors JSON in a string of JSON; words
            # take no more than their tokens.
            told = 2 * (1 + self.asked.of_words) * len(orjson.dumps(tokens.fields))
            found[f"{index}.tokens"] = ((told + _RESULT_BYTES,), "bool")
        return found

    @property
    def peak_bytes(self) -> int:
        """Most memory that it takes above the model."""
        info, asked = self.module.info, self.asked
        kept = sum(4 * math.prod(shape) for shape, dtype in self.shapes.values() if dtype != "bool")
        if asked.is_plain:
            runs = self.module.runs(self.texts)
            sizes = [(len(run), len(self.texts[run[0]])) for run in runs]
        else:
            sizes = [(1, self.longest)]
            # What is found of each layer is put together in the end.
            kept *= 2
        attention = max(self._attention_bytes(texts, longest) for texts, longest in sizes)
        hidden = 4 * 16 * info.embed_dim * max(texts * longest for texts, longest in sizes)
        squares = 8 * max(len(units) for units in self.units) ** 2
        mixed = squares * (3 + asked.depth * asked.returns.flow) if asked.mixes_layers else 0
        return kept + attention + hidden + mixed

    def _attention_bytes(self, texts: int, longest: int) -> int:
        """What the attention of a run takes beside what is answered."""
        info, asked, model = self.module.info, self.asked, self.module.model
        if not isinstance(model, LayeredModel):
            return 2 * 4 * texts * longest**2 * info.num_layers * info.num_heads
        of_rows = asked.looks_at_rows or asked.of_words
        selection = None if of_rows else asked.selection
        reduce = None if selection is None else selection.reduce
        top_k = None if selection is None else selection.top_k
        wants = wanted(
            range(info.num_heads) if reduce else asked.heads,
            longest,
            output=True,
            weights=selection is not None,
            entropy=asked.returns.entropy and not of_rows,
            reduce=reduce,
            top_k=None if top_k is None else min(top_k, longest),
        )
        attention = model.attention_bytes(texts, longest, info.head_dim, wants)
        if asked.is_plain and model.is_short(texts, longest):
            # One run of all layers holds the weights of each, asked for or not.
            unasked = info.num_layers - (0 if selection is None else len(asked.layers))
            attention += 4 * unasked * info.num_heads * longest**2
        return attention + (4 * self._block_bytes() if of_rows else 0)

    def _block_bytes(self) -> int:
        """Weights of every head that are looked at together: a unit is never parted."""
        most = 0
        for tokens, units in zip(self.texts, self.units, strict=True):
            row = 4 * self.module.info.num_heads * max(len(tokens), 1)
            longest = int((units.stops - units.starts).max(initial=1))
            most = max(most, min(len(tokens), max(BLOCK_BYTES // row, longest)) * row)
        return most
