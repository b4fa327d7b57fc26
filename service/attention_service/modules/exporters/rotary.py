"""Rotary positions (https://arxiv.org/abs/2104.09864): frequencies, angles, and heads turned.

The variants are those of transformers' ``ROPE_INIT_FUNCTIONS``, by their names there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from attention_service.modules.exporters.blocks import FLOAT, Graph
from attention_service.modules.exporters.errors import ExportError
from attention_wire.tensors import Array

Frequencies = Array
_BASE = 10_000.0


class Angles(NamedTuple):
    """Cosine and sine of every position's angles, both ``[L,D/2]``."""

    cosine: str
    sine: str


def frequencies(given: Mapping[str, Any], base: float | None, head_size: int) -> Frequencies:
    """How far one position turns each pair of a head's numbers: float32 ``[D/2]``, in radians.

    Args:
        given: ``rope_parameters`` (or ``rope_scaling``) of a configuration.
        base: ``rope_theta``, where it stands beside that.
        head_size: D.

    Raises:
        ExportError: the variant is not known, or a number of it is missing.
    """
    kind = given.get("rope_type", given.get("type", "default"))
    theta = float(given.get("rope_theta") or base or _BASE)
    if head_size % 2 or float(given.get("partial_rotary_factor", 1.0)) != 1:
        raise ExportError(
            "config.json: rotary positions of a part of a head, or of an odd head size "
            f"({head_size}), are not supported"
        )
    plain = theta ** -(np.arange(0, head_size, 2, dtype=np.float32) / np.float32(head_size))
    if kind == "default":
        return plain.astype(np.float32)
    try:
        if kind == "linear":
            return (plain / float(given["factor"])).astype(np.float32)
        if kind == "llama3":
            return _llama3(plain, given)
    except KeyError as error:
        raise ExportError(f"config.json: rope_type {kind!r} needs {error}") from None
    raise ExportError(
        f"config.json: rope_type {kind!r} is not supported; supported are default, linear, llama3"
    )


def _llama3(plain: Frequencies, given: Mapping[str, Any]) -> Frequencies:
    """Slow frequencies divided by the factor, fast ones as they are, those between in between."""
    factor, low, high = (
        float(given[name]) for name in ("factor", "low_freq_factor", "high_freq_factor")
    )
    turns = float(given["original_max_position_embeddings"]) * plain / (2 * math.pi)
    share = np.clip((turns - low) / (high - low), 0, 1)
    found: Frequencies = ((1 - share) * plain / factor + share * plain).astype(np.float32)
    return found


def angles(graph: Graph, input_ids: str, of: Frequencies, name: str = "rotary") -> Angles:
    """The angles of as many positions as there are tokens ``[B,L]``."""
    zero = graph.constant("position_zero", np.array(0, np.int64))
    step = graph.constant("position_step", np.array(1, np.int64))
    batch_axis = graph.constant("position_axes", np.array([0], np.int64))
    length = graph.node("Shape", input_ids, name=f"{name}.length", start=1, end=2)
    end = graph.node("Squeeze", length, batch_axis, name=f"{name}.end")
    whole = graph.node("Range", zero, end, step, name=f"{name}.positions")
    positions = graph.node("Cast", whole, name=f"{name}.float_positions", to=FLOAT)
    axis = graph.constant("last_axis_of_one", np.array([1], np.int64))
    column = graph.node("Unsqueeze", positions, axis, name=f"{name}.column")
    turns = graph.constant(f"{name}.frequencies", of)
    found = graph.node("Mul", column, turns, name=f"{name}.angles")
    return Angles(
        graph.node("Cos", found, name=f"{name}.cosine"),
        graph.node("Sin", found, name=f"{name}.sine"),
    )


def turned(graph: Graph, x: str, by: Angles, name: str) -> str:
    """Heads ``[B,H,L,D]``, the first half of each turned with the second."""
    first, second = graph.split(
        x, (f"{name}.first", f"{name}.second"), axis=-1, name=f"{name}.halves"
    )
    products = {
        (half, angle): graph.node("Mul", value, table, name=f"{name}.{half}_{angle}")
        for half, value in (("first", first), ("second", second))
        for angle, table in (("cosine", by.cosine), ("sine", by.sine))
    }
    left = graph.node(
        "Sub", products["first", "cosine"], products["second", "sine"], name=f"{name}.left"
    )
    right = graph.node(
        "Add", products["second", "cosine"], products["first", "sine"], name=f"{name}.right"
    )
    return graph.node("Concat", left, right, name=name, axis=-1)
