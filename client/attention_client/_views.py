"""What other libraries take of a text's weights: xarray, BertViz and CircuitsVis."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from attention_wire.tensors import Array


def data_array(
    weights: Array,
    *,
    layers: Sequence[int],
    heads: Sequence[int],
    queries: Sequence[int],
    labels: Sequence[str],
    attrs: dict[str, str],
) -> Any:
    """An ``xarray.DataArray`` of weights, [layers, heads, rows, U].

    Args:
        weights: they are not copied.
        layers: the number of each layer.
        heads: the number of each head; as many as there are, or the dimension gets no numbers.
        queries: the number of each row.
        labels: what the U columns are.
        attrs: what the array says about itself.

    Raises:
        ImportError: xarray is not installed.
    """
    xarray = _library("xarray", "to_xarray")
    coordinates: dict[str, Any] = {
        "layer": list(layers),
        "query": list(queries),
        "key": list(range(len(labels))),
        "query_token": ("query", [labels[row] for row in queries]),
        "key_token": ("key", list(labels)),
    }
    if len(heads) == weights.shape[1]:
        coordinates["head"] = list(heads)
    dims = ("layer", "head", "query", "key")
    return xarray.DataArray(weights, coordinates, dims, name="weights", attrs=attrs)


def bertviz(weights: Array, labels: Sequence[str], second: int | None) -> dict[str, Any]:
    """Keyword arguments of BertViz's ``head_view`` and ``model_view``.

    Args:
        weights: [layers, heads, U, U]; they are copied, for PyTorch wants to write to its own.
        labels: what the U rows and columns are.
        second: where the second text of a pair begins.

    Raises:
        ImportError: PyTorch is not installed, whose tensors BertViz takes.
    """
    torch = _library("torch", "to_bertviz")
    arguments: dict[str, Any] = {
        "attention": [torch.tensor(layer)[None] for layer in weights],
        "tokens": list(labels),
    }
    if second is not None:
        arguments["sentence_b_start"] = second
    return arguments


def _library(name: str, method: str) -> Any:
    """A library that the client does not come with."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:  # it is there, and lacks something itself
            raise
        message = f"{method} needs the package {name!r}: pip install {name}"
        raise ImportError(message, name=name) from error
