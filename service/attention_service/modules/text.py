"""A text module: raw text in, tokens, hidden states and every head's weights out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
from typing_extensions import override

from attention_service.attention.engine import Session
from attention_service.attention.job import SMALL_BYTES, SMALL_FLOPS, Fits, Job, Shapes
from attention_service.attention.lanes import Cancelled, never
from attention_service.modules.manifest import Outputs, Probe
from attention_service.modules.tokens import Tokenizer, Tokens
from attention_wire.problems import Code, Loc, ProblemError
from attention_wire.schemas import ModuleInfo, TextRequest
from attention_wire.tensors import Array

# Names, dtypes, shapes and offsets of one result's tensors, in any form.
_RESULT_BYTES = 256
INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids"})


class TextModule:
    """A loaded text module.

    Args:
        info: what it is.
        session: its graph.
        outputs: the names of the graph's outputs.
        tokenizer: turns text into the graph's inputs.
    """

    def __init__(
        self, info: ModuleInfo, session: Session, outputs: Outputs, tokenizer: Tokenizer
    ) -> None:
        self.info = info
        self.session = session
        self.outputs = outputs
        self.tokenizer = tokenizer

    def probe(self) -> Probe:
        """Run it over its longest text: the shapes that it gives, and those that it should."""
        info = self.info
        longest = info.max_length or 2
        self.session.run([self.outputs.output], _feeds(self.tokenizer.last_tokens(longest)))
        names = [self.outputs.output, *self.outputs.weights]
        arrays = self.session.run(names, _feeds(self.tokenizer.last_tokens(2)))
        weights = (1, info.num_heads, 2, 2)
        expected = [(1, 2, info.embed_dim), *[weights] * info.num_layers]
        return {n: (arrays[n].shape, e) for n, e in zip(names, expected, strict=True)}

    def job(self, request: TextRequest) -> TextJob:
        """A request to this module as a job.

        Raises:
            ProblemError: a text is too long, the pair does not fit the texts, or a layer or
                head does not exist.
        """
        return TextJob(self, request)


class TextJob(Job):
    """One call of a text module, over one text or several.

    Each text runs by itself, so no padding exists and a text gives the same values alone and
    among others.
    """

    def __init__(self, module: TextModule, request: TextRequest) -> None:
        self._module = module
        self._wants = request.return_
        self._layers = _select("layers", request.layers, module.info.num_layers)
        self._heads = _select("heads", request.heads, module.info.num_heads)
        self._texts = [
            module.tokenizer.encode(
                text, pair, module.info.max_length, truncate=request.truncate, place=place
            )
            for text, pair, place in _texts(request)
        ]

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
        longest = max(len(tokens) for tokens in self._texts)
        all_weights = info.num_layers * info.num_heads * longest**2
        kept = sum(len(tokens) ** 2 for tokens in self._texts)
        kept *= len(self._layers) * len(self._heads)
        hidden = 16 * info.embed_dim * longest
        return 4 * (2 * all_weights + kept + hidden)

    @property
    @override
    def is_small(self) -> bool:
        info = self._module.info
        # A layer's projections and its two wider products are 12 squares of its width.
        tokens = sum(len(tokens) for tokens in self._texts)
        flops = 24 * tokens * info.num_layers * info.embed_dim**2
        return flops <= SMALL_FLOPS and self.peak_bytes <= SMALL_BYTES

    @override
    def smaller(self, fits: Fits) -> str:
        without = {n: s for n, s in self.answer_shapes.items() if not n.endswith(".weights")}
        if self._wants.weights and fits(without, self.peak_bytes):
            return 'Ask for fewer "layers" or "heads"; {"return": {"weights": false}} would fit.'
        return 'Send fewer texts, or ask for fewer "layers" or "heads".'

    @override
    def run(self, cancelled: Callable[[], bool] = never) -> dict[str, Any]:
        results = []
        for tokens in self._texts:
            if cancelled():
                raise Cancelled
            results.append(self._result(tokens))
        return {
            "module": self._module.info.name,
            "provider": self._module.session.provider,
            "results": results,
        }

    def _result(self, tokens: Tokens) -> dict[str, Any]:
        names = self._module.outputs
        layers = self._layers if self._wants.weights else []
        outputs = [names.weights[layer] for layer in layers]
        if self._wants.output:
            outputs.append(names.output)
        if not outputs:
            return dict(tokens.fields)
        arrays = self._module.session.run(outputs, _feeds(tokens))
        result: dict[str, Any] = dict(tokens.fields)
        if self._wants.output:
            result["output"] = arrays[names.output][0]
        if self._wants.weights:
            result["weights"] = self._stack([arrays[names.weights[layer]] for layer in layers])
        return result

    def _stack(self, layers: list[Array]) -> Array:
        """Each layer's ``[1,H,L,L]`` as ``[layers,heads,L,L]`` of the heads asked for."""
        if len(self._heads) == self._module.info.num_heads and self._heads == sorted(self._heads):
            return np.concatenate(layers)
        return np.concatenate([layer[:, self._heads] for layer in layers])


def _feeds(tokens: Tokens) -> dict[str, Array]:
    ids = tokens.ids[None]
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": tokens.type_ids[None],
    }


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
