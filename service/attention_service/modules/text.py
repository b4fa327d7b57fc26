"""A text module: raw text in, tokens, hidden states and every head's weights out."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import islice
from typing import Any, Self

import numpy as np
import orjson
from typing_extensions import override

from attention_service.attention.engine import EngineError, Session
from attention_service.attention.job import SMALL_BYTES, SMALL_FLOPS, Fits, Job, Shapes
from attention_service.attention.lanes import Cancelled, never
from attention_service.modules.manifest import Outputs, Probe
from attention_service.modules.padding import RUN_TOKENS, runs
from attention_service.modules.tokens import Tokenizer, Tokens
from attention_wire.problems import Code, Loc, ProblemError
from attention_wire.schemas import ModuleInfo, TextRequest
from attention_wire.tensors import Array

# Names, dtypes, shapes and offsets of one result's tensors, in any form.
_RESULT_BYTES = 256
# Scores of all heads and layers that one run may form for texts that it pads.
_RUN_BYTES = 6 * 2**20
# Scores of one layer that a module forms when it is loaded, to be tried.
_PROBE_BYTES = 2**27
# What padding may change, of the largest number: kernels round by shape.
_LIKE = 1e-3
INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids"})


class TextModule:
    """A loaded text module.

    Args:
        info: what it is.
        session: its graph.
        outputs: the names of the graph's outputs.
        tokenizer: turns text into the graph's inputs.

    Attributes:
        takes_padding: whether padding changes nothing, so that texts can run together; known
            once it was probed.
    """

    def __init__(
        self, info: ModuleInfo, session: Session, outputs: Outputs, tokenizer: Tokenizer
    ) -> None:
        self.info = info
        self.session = session
        self.outputs = outputs
        self.tokenizer = tokenizer
        self.takes_padding = False

    @property
    def heads_bytes(self) -> int:
        """Bytes of one score of every head."""
        return 4 * self.info.num_layers * self.info.num_heads

    def runs(self, texts: Sequence[Tokens]) -> list[list[int]]:
        """Which texts run together."""
        if not self.takes_padding:
            return [[index] for index in range(len(texts))]
        return runs([len(tokens) for tokens in texts], _RUN_BYTES / self.heads_bytes)

    def arrays(self, outputs: Sequence[str], texts: Sequence[Tokens]) -> dict[str, Array]:
        """The graph's outputs for texts of one run, each padded to the longest."""
        return self.session.run(outputs, _feeds(texts))

    def probe(self) -> Probe:
        """Run it over a long text: the shapes that it gives, and those that it should."""
        info = self.info
        # Or as long a text as can be run in some memory, where a model takes very long ones.
        longest = min(info.max_length or 2, math.isqrt(_PROBE_BYTES // (4 * info.num_heads)))
        self.arrays([self.outputs.output], [self.tokenizer.last_tokens(longest)])
        names = [self.outputs.output, *self.outputs.weights]
        arrays = self.arrays(names, [self.tokenizer.last_tokens(2)])
        weights = (1, info.num_heads, 2, 2)
        expected = [(1, 2, info.embed_dim), *[weights] * info.num_layers]
        self.takes_padding = self._takes_padding()
        return {n: (arrays[n].shape, e) for n, e in zip(names, expected, strict=True)}

    def _takes_padding(self) -> bool:
        short, longer = (self.tokenizer.last_tokens(length) for length in (2, 3))
        name = self.outputs.output
        alone = self.arrays([name], [short])[name]
        try:
            padded = self.arrays([name], [longer, short])[name]
        except EngineError:
            return False  # a graph of one text
        is_whole = padded.shape == (2, 3, self.info.embed_dim)
        most = _LIKE * np.abs(alone).max()
        return bool(is_whole and np.abs(padded[1, :2] - alone[0]).max() <= most)

    def tokens(self, request: TextRequest) -> list[Tokens]:
        """The texts of a request, tokenized.

        Raises:
            ProblemError: a text is too long, or the pair does not fit the texts.
        """
        longest = self.info.max_length
        return [
            self.tokenizer.encode(text, pair, longest, truncate=request.truncate, place=place)
            for text, pair, place in _texts(request)
        ]

    def job(self, request: TextRequest) -> TextJob:
        """A request to this module as a job.

        Raises:
            ProblemError: a text is too long, the pair does not fit the texts, or a layer or
                head does not exist.
        """
        return TextJob(self, request)


class TextJob(Job):
    """One call of a text module, over one text or several.

    Texts of a like length run together, padded to the longest. What is padded is masked and cut
    off, so to the rounding of the kernels a text gives the same values alone and among others.
    """

    def __init__(self, module: TextModule, request: TextRequest) -> None:
        self._module = module
        self._wants = request.return_
        self._layers = _select("layers", request.layers, module.info.num_layers)
        self._heads = _select("heads", request.heads, module.info.num_heads)
        self._texts = module.tokens(request)
        names = module.outputs
        layers = self._layers if self._wants.weights else []
        self._outputs = [names.weights[layer] for layer in layers]
        self._outputs += [names.output] if self._wants.output else []

    @property
    @override
    def answer_shapes(self) -> Shapes:
        shapes: dict[str, tuple[tuple[int, ...], str]] = {}
        for index, tokens in enumerate(self._texts):
            length = len(tokens)
            if self._wants.output:
                shapes[f"{index}.output"] = ((length, self._module.info.embed_dim), "float32")
            if self._wants.weights:
                shape = (len(self._layers), len(self._heads), length, length)
                shapes[f"{index}.weights"] = (shape, "float32")
            # What tells of the tokens is JSON, in safetensors JSON in a string of JSON.
            told = 2 * len(orjson.dumps(tokens.fields)) + _RESULT_BYTES
            shapes[f"{index}.tokens"] = ((told,), "bool")
        return shapes

    @property
    @override
    def peak_bytes(self) -> int:
        info = self._module.info
        sizes = [(len(run), len(self._texts[run[0]])) for run in self._module.runs(self._texts)]
        all_weights = max(texts * longest**2 for texts, longest in sizes)
        all_weights *= info.num_layers * info.num_heads
        kept = sum(len(tokens) ** 2 for tokens in self._texts)
        kept *= len(self._layers) * len(self._heads)
        hidden = 16 * info.embed_dim * max(texts * longest for texts, longest in sizes)
        return 4 * (2 * all_weights + kept + hidden)

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
        if not (self._outputs and self._module.takes_padding):
            return None
        return self._module, tuple(self._outputs), math.ceil(self._longest / RUN_TOKENS)

    @property
    @override
    def batch_bytes(self) -> int:
        return len(self._texts) * self._longest**2 * self._module.heads_bytes

    @property
    def _longest(self) -> int:
        return max(len(tokens) for tokens in self._texts)

    @override
    def smaller(self, fits: Fits) -> str:
        without = {n: s for n, s in self.answer_shapes.items() if not n.endswith(".weights")}
        if self._wants.weights and fits(without, self.peak_bytes):
            return 'Ask for fewer "layers" or "heads"; {"return": {"weights": false}} would fit.'
        return 'Send fewer texts, or ask for fewer "layers" or "heads".'

    @override
    def run(self, cancelled: Callable[[], bool] = never) -> dict[str, Any]:
        return self.run_together([self], cancelled)[0]

    @classmethod
    @override
    def run_together(
        cls, jobs: Sequence[Self], cancelled: Callable[[], bool] = never
    ) -> list[dict[str, Any]]:
        module, outputs = jobs[0]._module, jobs[0]._outputs
        texts = [(job, tokens) for job in jobs for tokens in job._texts]
        results: dict[int, dict[str, Any]] = {}
        for run in module.runs([tokens for _, tokens in texts]):
            if cancelled():
                raise Cancelled
            arrays = module.arrays(outputs, [texts[at][1] for at in run]) if outputs else {}
            for row, at in enumerate(run):
                job, tokens = texts[at]
                own = {name: array[row] for name, array in arrays.items()}
                results[at] = job._result(tokens, own)
        in_order = (results[at] for at in range(len(texts)))
        about = {"module": module.info.name, "provider": module.session.provider}
        return [{**about, "results": list(islice(in_order, job.count))} for job in jobs]

    def _result(self, tokens: Tokens, arrays: Mapping[str, Array]) -> dict[str, Any]:
        """One text's result, of its row of each output: copies, for the others' are let go."""
        names, length = self._module.outputs, len(tokens)
        result: dict[str, Any] = dict(tokens.fields)
        if self._wants.output:
            result["output"] = arrays[names.output][:length].copy()
        if self._wants.weights:
            layers = [arrays[names.weights[layer]] for layer in self._layers]
            result["weights"] = self._stack([layer[:, :length, :length] for layer in layers])
        return result

    def _stack(self, layers: list[Array]) -> Array:
        """Each layer's ``[H,L,L]`` as ``[layers,heads,L,L]`` of the heads asked for."""
        if len(self._heads) == self._module.info.num_heads and self._heads == sorted(self._heads):
            return np.stack(layers)
        return np.stack([layer[self._heads] for layer in layers])


def _feeds(texts: Sequence[Tokens]) -> dict[str, Array]:
    shape = len(texts), max(len(tokens) for tokens in texts)
    ids, seen, types = (np.zeros(shape, np.int64) for _ in range(3))
    for row, tokens in enumerate(texts):
        own = row, slice(len(tokens))
        ids[own], seen[own], types[own] = tokens.ids, 1, tokens.type_ids
    return {"input_ids": ids, "attention_mask": seen, "token_type_ids": types}


def _select(name: str, indices: list[int] | str, count: int) -> list[int]:
    if isinstance(indices, str):
        return list(range(count))
    if max(indices) >= count:
        raise ProblemError.of_field(
            name, f"holds {max(indices)}, where the module has {count}, counted from 0"
        )
    return indices


def _texts(request: TextRequest) -> list[tuple[str, str | None, Loc]]:
    """Each text, its pair, and the path to it for messages."""
    text, pair = request.text, request.text_pair
    if isinstance(text, str) and not isinstance(pair, list):
        return [(text, pair, ("text",))]
    if isinstance(text, str) or isinstance(pair, str):
        raise ProblemError.of_field(
            "text_pair", "has the form of text: both are strings, or both are lists of strings"
        )
    pairs = [None] * len(text) if pair is None else pair
    if len(pairs) != len(text):
        raise ProblemError.of_field(
            "text_pair",
            f"holds {len(pairs)} texts where text holds {len(text)}; send one for each",
            Code.INVALID_FIELD,
        )
    return [(a, b, ("text", index)) for index, (a, b) in enumerate(zip(text, pairs, strict=True))]
