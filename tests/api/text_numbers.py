"""Analyses of attention, computed in float64 from whole weights, to compare answers with."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.api.text_models import Array

TOLERANCE = 1e-5


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def entropies(weights: Array) -> Array:
    raised = np.where(weights > 0, weights, 1)
    entropy: Array = -(raised * np.log(raised)).sum(axis=-1)
    return entropy


def statistics(weights: Array, special: list[int]) -> dict[str, Array]:
    units = np.arange(weights.shape[-1])
    separators = [unit for unit in units if special[unit] and unit]
    rows = {
        "entropy": entropies(weights),
        "maximum": weights.max(axis=-1),
        "distance": (weights * np.abs(units[:, None] - units)).sum(axis=-1),
        "first": weights[..., 0],
        "separator": weights[..., separators].sum(axis=-1),
        "itself": np.diagonal(weights, axis1=-2, axis2=-1),
    }
    return {name: values.mean(axis=-1) for name, values in rows.items()}


def classes(
    weights: Array, ids: list[int], special: list[int]
) -> tuple[dict[str, Array], dict[str, int]]:
    """Mean mass over the keys that a class means, of the rows that have such, and their number."""
    number, of_text = np.array(ids), ~np.array(special, bool)
    row, key = np.indices(weights.shape[-2:])
    is_separator = ~of_text[key] & (key > 0) & of_text[row]
    keys = {
        "previous": key == row - 1,
        "next": key == row + 1,
        "first": (key == 0) & (row > 0),
        "separator": is_separator,
        "duplicate": (key < row) & (number[key] == number[row]) & of_text[row],
        "induction": (key > 0) & (key <= row) & (number[key - 1] == number[row]) & of_text[row],
    }
    rows = {name: int(meant.any(axis=-1).sum()) for name, meant in keys.items()}
    scores = {n: (weights * keys[n]).sum(axis=(-2, -1)) / max(rows[n], 1) for n in keys}
    return scores, rows


def mixed(weights: Array) -> list[Array]:
    """For each layer half the mean of its heads and half the row itself."""
    return [(layer.mean(axis=0) + np.eye(len(layer[0]))) / 2 for layer in weights]


def rollouts(weights: Array) -> Array:
    found = [np.eye(weights.shape[-1])]
    for layer in mixed(weights):
        found.append(layer @ found[-1])
    return np.stack(found[1:])


def words_of(weights: Array, spans: list[tuple[int, int]]) -> Array:
    """Rows of words are means of their tokens', columns are sums."""
    columns = np.stack([weights[..., a:b].sum(axis=-1) for a, b in spans], axis=-1)
    return np.stack([columns[..., a:b, :].mean(axis=-2) for a, b in spans], axis=-2)


def check_numbers(
    found: dict[str, Any], weights: Array, ids: list[int], special: list[int]
) -> None:
    """That entropy, statistics, classes and labels are those of these weights."""
    close(found["entropy"], entropies(weights))
    expected, (scores, rows) = statistics(weights, special), classes(weights, ids, special)
    assert found["statistics"].keys() == expected.keys()
    assert found["classes"].keys() == {*scores, "labels"}
    for name, numbers in expected.items():
        close(found["statistics"][name], numbers)
    for name, numbers in scores.items():
        close(found["classes"][name], numbers)
    names = [name for name in scores if rows[name] >= 3]
    table = np.stack([scores[name] for name in names])
    assert np.abs(table.max(axis=0) - 0.4).min() > TOLERANCE, "no label is left to rounding"
    best, labels = table.argmax(axis=0), found["classes"]["labels"]
    for layer, head in np.ndindex(best.shape):
        number = best[layer, head]
        label = names[number] if table[number, layer, head] >= 0.4 else None
        assert labels[layer][head] == label
