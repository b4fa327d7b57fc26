"""Calls of text modules as jobs."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Self

import orjson
from typing_extensions import override

from attention_service.attention.job import SMALL_BYTES, SMALL_FLOPS, Fits, Job, Shapes
from attention_service.attention.lanes import never
from attention_service.modules.analysis import BLOCK_BYTES, Analysis
from attention_service.modules.asked import Asked
from attention_service.modules.layered import LayeredModel, wanted
from attention_service.modules.padding import RUN_TOKENS
from attention_wire.schemas import TextRequest

if TYPE_CHECKING:
    from attention_service.modules.text import TextModule

# Names, dtypes, shapes and offsets of one result's tensors, in any form.
_RESULT_BYTES = 256


class TextJob(Job):
    """One call of a text module, over one text or several.

    Texts of a like length of which output and whole weights are wanted run together, padded to
    the longest. What is padded is masked and cut off, so to the rounding of the kernels a text
    gives the same values alone and among others.

    Raises:
        ProblemError: a text is too long, the pair does not fit the texts, a layer or head does
            not exist, or the module does not give what is asked for.
    """

    def __init__(self, module: TextModule, request: TextRequest) -> None:
        self._module = module
        is_layered = isinstance(module.model, LayeredModel)
        self._asked = Asked.of(request, module.info, is_layered=is_layered)
        self._texts = module.tokens(request)
        self._units = [self._asked.units(tokens) for tokens in self._texts]

    @property
    @override
    def answer_shapes(self) -> Shapes:
        shapes: dict[str, tuple[tuple[int, ...], str]] = {}
        for index, (tokens, units) in enumerate(zip(self._texts, self._units, strict=True)):
            for name, like in self._asked.shapes(tokens, units).items():
                shapes[f"{index}.{name}"] = like
            # What tells of the tokens is JSON, in safetensors JSON in a string of JSON; words
            # take no more than their tokens.
            told = 2 * (1 + self._asked.of_words) * len(orjson.dumps(tokens.fields))
            shapes[f"{index}.tokens"] = ((told + _RESULT_BYTES,), "bool")
        return shapes

    @property
    @override
    def peak_bytes(self) -> int:
        info, asked = self._module.info, self._asked
        kept = sum(
            4 * math.prod(shape) for shape, dtype in self.answer_shapes.values() if dtype != "bool"
        )
        if asked.is_plain:
            runs = self._module.runs(self._texts)
            sizes = [(len(run), len(self._texts[run[0]])) for run in runs]
        else:
            sizes = [(1, self._longest)]
            # What is found of each layer is put together in the end.
            kept *= 2
        attention = max(self._attention_bytes(texts, longest) for texts, longest in sizes)
        hidden = 4 * 16 * info.embed_dim * max(texts * longest for texts, longest in sizes)
        squares = 8 * max(len(units) for units in self._units) ** 2
        mixed = squares * (3 + asked.depth * asked.returns.flow) if asked.mixes_layers else 0
        return kept + attention + hidden + mixed

    def _attention_bytes(self, texts: int, longest: int) -> int:
        """What the attention of a run takes beside what is answered."""
        info, asked, model = self._module.info, self._asked, self._module.model
        if not isinstance(model, LayeredModel):
            return 2 * 4 * texts * longest**2 * info.num_layers * info.num_heads
        of_rows = asked.looks_at_rows or asked.of_words
        selection = None if of_rows else asked.selection
        is_reduced = selection is not None and selection.reduce is not None
        wants = wanted(
            range(info.num_heads) if is_reduced else asked.heads,
            longest,
            output=True,
            weights=selection is not None,
            entropy=asked.returns.entropy and not of_rows,
            reduce=None if selection is None else selection.reduce,
            top_k=None if selection is None or not selection.top_k
            else min(selection.top_k, longest),
        )  # fmt: skip
        planned = model.planned(texts, longest, info.head_dim, wants).peak_bytes
        return planned + (4 * self._block_bytes() if of_rows else 0)

    def _block_bytes(self) -> int:
        """Weights of every head that are looked at together: a unit is never parted."""
        most = 0
        for tokens, units in zip(self._texts, self._units, strict=True):
            row = 4 * self._module.info.num_heads * max(len(tokens), 1)
            longest = int((units.stops - units.starts).max(initial=1))
            most = max(most, min(len(tokens), max(BLOCK_BYTES // row, longest)) * row)
        return most

    @property
    @override
    def is_small(self) -> bool:
        info = self._module.info
        # A layer's projections and its two wider products are 12 squares of its width.
        tokens = sum(len(tokens) for tokens in self._texts)
        flops = 24 * tokens * info.num_layers * info.embed_dim**2
        return flops <= SMALL_FLOPS and self.peak_bytes <= SMALL_BYTES

    @property
    @override
    def count(self) -> int:
        return len(self._texts)

    @property
    @override
    def module(self) -> str:
        return self._module.info.name

    @property
    @override
    def score_bytes(self) -> int:
        return sum(len(tokens) ** 2 for tokens in self._texts) * self._module.heads_bytes

    @property
    @override
    def batch_key(self) -> Hashable | None:
        asked = self._asked
        if not (asked.is_plain and asked.depth and self._module.takes_padding):
            return None
        what = tuple(asked.layers), asked.returns.output, asked.returns.weights
        return self._module, what, math.ceil(self._longest / RUN_TOKENS)

    @property
    @override
    def batch_bytes(self) -> int:
        return len(self._texts) * self._longest**2 * self._module.heads_bytes

    @property
    def _longest(self) -> int:
        return max(len(tokens) for tokens in self._texts)

    @override
    def smaller(self, fits: Fits) -> str:
        without = {
            n: s
            for n, s in self.answer_shapes.items()
            if ".weights" not in n and ".inputs" not in n
        }
        if self._asked.selection is not None and fits(without, self.peak_bytes):
            return (
                'Ask for fewer "layers" or "heads"; {"return": {"weights": false}} would fit, and '
                '{"return": {"weights": {"top_k": 8}}} gives the largest of each row.'
            )
        return 'Send fewer texts, or ask for fewer "layers" or "heads".'

    @override
    def run(self, cancelled: Callable[[], bool] = never) -> dict[str, Any]:
        if self._asked.is_plain:
            return self.run_together([self], cancelled)[0]
        model, asked = self._module.model, self._asked
        results = [
            dict(tokens.fields) | Analysis(model, asked, tokens, units, cancelled).result()
            for tokens, units in zip(self._texts, self._units, strict=True)
        ]
        return {**self._about(), "results": results}

    @classmethod
    @override
    def run_together(
        cls, jobs: Sequence[Self], cancelled: Callable[[], bool] = never
    ) -> list[dict[str, Any]]:
        module, asked = jobs[0]._module, jobs[0]._asked
        texts = [tokens for job in jobs for tokens in job._texts]
        heads = [job._asked.heads for job in jobs for _ in job._texts]
        layers = asked.layers if asked.selection is not None else ()
        results: dict[int, dict[str, Any]] = {at: {} for at in range(len(texts))}
        for run in module.runs(texts) if asked.depth else ():
            arrays = module.run(
                [texts[at] for at in run],
                layers,
                [heads[at] for at in run],
                cancelled,
                output=asked.returns.output,
            )
            results |= dict(zip(run, arrays, strict=True))
        in_order = ({**texts[at].fields, **results[at]} for at in range(len(texts)))
        return [{**job._about(), "results": list(islice(in_order, job.count))} for job in jobs]

    def _about(self) -> dict[str, Any]:
        return {"module": self._module.info.name, "provider": self._module.model.provider}
