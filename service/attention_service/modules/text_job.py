"""Calls of text modules as jobs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Self

from typing_extensions import override

from attention_service.attention.job import SMALL_BYTES, SMALL_FLOPS, Fits, Job, Shapes
from attention_service.attention.lanes import never
from attention_service.modules.analysis import Analysis
from attention_service.modules.asked import Asked
from attention_service.modules.layered import LayeredModel
from attention_service.modules.padding import RUN_TOKENS
from attention_service.modules.text import TextModule
from attention_service.modules.text_costs import TextCosts
from attention_wire.schemas import TextRequest, TextWeightsSelection

# What to ask for where a call is too large, from the most that may be wanted down.
_LESS: tuple[dict[str, Any], ...] = (
    {"weights": TextWeightsSelection(top_k=8)},
    {"weights": TextWeightsSelection(top_k=8, reduce="mean")},
    {"weights": False},
    {"weights": False, "output": False},
)


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
        self._costs = TextCosts(module, self._asked, self._texts, self._units)

    @property
    @override
    def answer_shapes(self) -> Shapes:
        return self._costs.shapes

    @property
    @override
    def peak_bytes(self) -> int:
        return self._costs.peak_bytes

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
        return self._costs.longest

    @override
    def smaller(self, fits: Fits) -> str:
        for asked in _LESS if self._asked.selection is not None else ():
            returns = self._asked.returns.model_copy(update={"inputs": False, **asked})
            less = TextCosts(
                self._module, replace(self._asked, returns=returns), self._texts, self._units
            )
            if fits(less.shapes, less.peak_bytes):
                told = json.dumps(returns.model_dump(exclude_defaults=True))
                return f'{{"return": {told}}} would fit, or fewer "layers" or "heads".'
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
