"""One text's part of an answer, as the result that callers get."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel

from attention_client.text_parts import LayerInputs
from attention_client.text_results import TextAttention
from attention_wire.answers import AttentionInputs, TextResult, TopK
from attention_wire.tensors import Array

_TOKEN_FIELDS = (
    "tokens", "token_ids", "offsets", "word_ids", "special_tokens_mask", "segments",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Asked:
    """What the answer does not repeat of the request.

    Attributes:
        layers: the layers that were named; None for all.
        heads: the heads that were named; None for all.
        reduced: how the heads of the weights are made one.
        queries: the rows of the weights that were named; None for all.
    """

    layers: list[int] | None
    heads: list[int] | None
    reduced: Literal["mean", "max"] | None
    queries: list[int] | None

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Asked:
        """What the fields of a request ask for, which the service has found to be right."""
        selection = _object(_object(fields["return"]).get("weights"))
        rows = selection.get("queries")
        if isinstance(rows, Mapping):
            rows = list(range(rows["start"], rows["stop"]))
        return cls(fields["layers"], fields["heads"], selection.get("reduce"), rows)


def text_result(result: TextResult, asked: Asked, **about: Any) -> TextAttention:
    """One text's result.

    Args:
        result: its part of the answer.
        asked: what the request asked for.
        about: the fields of :class:`TextAttention` that the answer has for all texts, and the
            texts.
    """
    layers, heads = _counts(result, is_reduced=asked.reduced is not None)
    numbers = asked.layers or list(range(layers))
    inputs = None
    if result.inputs is not None:
        inputs = tuple(_layer_inputs(n, one) for n, one in zip(numbers, result.inputs, strict=True))
    return TextAttention(
        arrays=arrays_of(result),
        layers=numbers,
        heads=asked.heads or list(range(heads)),
        reduced=asked.reduced,
        queries=asked.queries,
        _words=result.words,
        _statistics=result.statistics,
        _classes=result.classes,
        _inputs=inputs,
        **{name: getattr(result, name) for name in _TOKEN_FIELDS},
        **about,
    )


def arrays_of(answer: BaseModel) -> dict[str, Array]:
    """The arrays of an answer by their names, those that are there; of a top k, dotted names."""
    arrays: dict[str, Array] = {}
    for name in type(answer).model_fields:
        value = getattr(answer, name)
        if isinstance(value, np.ndarray):
            arrays[name] = value
        elif isinstance(value, TopK):
            arrays |= {f"{name}.{part}": array for part, array in arrays_of(value).items()}
    return arrays


def _counts(result: TextResult, *, is_reduced: bool) -> tuple[int, int]:
    """How many layers and heads were returned, by whatever was; 0 where nothing tells."""
    weights = result.weights.indices if isinstance(result.weights, TopK) else result.weights
    of_heads = [None if is_reduced else weights, result.entropy, result.blocks]
    of_heads += [part.first for part in (result.statistics, result.classes) if part is not None]
    of_layers = [weights, *of_heads, result.rollout, result.flow]
    layers = [len(array) for array in of_layers if array is not None]
    layers += [] if result.inputs is None else [len(result.inputs)]
    heads = [array.shape[1] for array in of_heads if array is not None]
    heads += [one.query.shape[1] for one in result.inputs or []]
    return next(iter(layers), 0), next(iter(heads), 0)


def _layer_inputs(number: int, inputs: AttentionInputs) -> LayerInputs:
    return LayerInputs(layer=number, **{n: getattr(inputs, n) for n in type(inputs).model_fields})


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
