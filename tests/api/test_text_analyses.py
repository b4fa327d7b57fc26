"""What is computed of a text's attention, against float64 computed from its whole weights."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
import pytest

from tests.api.support import TEXT, Caller
from tests.api.text_models import (
    ASKED,
    SENTENCE,
    Array,
    Asked,
    assert_same,
    every_model,
    flat,
    result,
    results,
)
from tests.api.text_numbers import TOLERANCE, check_numbers, close, mixed, rollouts, words_of
from tests.conftest import TEXT_MODULE

EVERYTHING = {
    "weights": {"top_k": 3},
    "entropy": True,
    "statistics": True,
    "classes": True,
    "rollout": True,
    "flow": True,
    "inputs": True,
}
PAIRS = [asked for asked in ASKED.values() if asked.text_pair]


@pytest.fixture
def caller(models_caller: Caller) -> Caller:
    return models_caller


# --- Numbers of rows and heads -----------------------------------------------------------------


@every_model
def test_entropy_statistics_and_classes(
    caller: Caller, weights_of: Callable[[Asked], Array], asked: Asked
) -> None:
    returns = {"weights": False, "entropy": True, "statistics": True, "classes": True}
    # Of every head, whatever `heads` says.
    found = result(caller, asked, heads=[1], return_=returns)
    assert "weights" not in found
    check_numbers(found, weights_of(asked), found["token_ids"], found["special_tokens_mask"])


def test_a_trained_model_has_heads_of_known_kinds(caller: Caller) -> None:
    labels = result(caller, Asked(TEXT_MODULE), return_={"classes": True})["classes"]["labels"]
    assert {"previous", "next", "first"} <= {label for layer in labels for label in layer}


@pytest.mark.parametrize("unit", ["token", "word"])
@pytest.mark.parametrize("asked", PAIRS, ids=lambda asked: asked.module)
def test_masses_between_the_texts_of_a_pair(
    caller: Caller, weights_of: Callable[[Asked], Array], asked: Asked, unit: str
) -> None:
    found = result(caller, asked, unit=unit, return_={"weights": False, "blocks": True})
    weights, segments = weights_of(asked), found["segments"]
    if unit == "word":
        weights = words_of(weights, found["words"]["tokens"])
        segments = found["words"]["segments"]
    assert found["blocks"].shape == (*weights.shape[:2], 2, 2)
    of = np.array([-1 if segment is None else segment for segment in segments])
    for a, b in np.ndindex(2, 2):
        mass = weights[..., of == a, :][..., of == b].sum(axis=-1).mean(axis=-1)
        close(found["blocks"][..., a, b], mass)


# --- Layers mixed ------------------------------------------------------------------------------


@every_model
def test_rollout(caller: Caller, weights_of: Callable[[Asked], Array], asked: Asked) -> None:
    found = result(caller, asked, return_={"weights": False, "rollout": True})
    close(found["rollout"], rollouts(weights_of(asked)))
    chosen = result(caller, asked, layers=[2, 0], heads=[2, 0], return_={"rollout": True})
    expected = rollouts(weights_of(asked)[:, [2, 0]])
    close(chosen["rollout"], expected[[2, 0]])


def largest_flow(layers: list[Array], row: int, key: int) -> float:
    """By Ford and Fulkerson, along shortest ways: nodes are layer by layer, inputs first."""
    units = len(layers[0])
    count = units * (len(layers) + 1)
    room = np.zeros((count, count))
    for level, widths in enumerate(layers):
        above, below = units * (level + 1), units * level
        room[above : above + units, below : below + units] = widths
    source, sink, total = count - units + row, key, 0.0
    while True:
        came = {source: source}
        queue = deque([source])
        while queue and sink not in came:
            node = queue.popleft()
            for other in np.flatnonzero(room[node] > 1e-12).tolist():
                if other not in came:
                    came[other] = node
                    queue.append(other)
        if sink not in came:
            return total
        way = [sink]
        while way[-1] != source:
            way.append(came[way[-1]])
        steps = list(zip(way[1:], way[:-1], strict=True))
        width = min(room[step] for step in steps)
        for a, b in steps:
            room[a, b] -= width
            room[b, a] += width
        total += width


@pytest.mark.parametrize("name", ASKED)
def test_flow(caller: Caller, weights_of: Callable[[Asked], Array], name: str) -> None:
    asked = Asked(name, "A cat, too." if name == TEXT_MODULE else "cat")
    found = result(caller, asked, layers=[2, 0], return_={"flow": True, "weights": False})
    layers = mixed(weights_of(asked))
    units = len(layers[0])
    assert units >= 3
    for place, layer in enumerate([2, 0]):
        expected = [
            [largest_flow(layers[: layer + 1], row, key) for key in range(units)]
            for row in range(units)
        ]
        close(found["flow"][place], expected)


# --- Several texts, and forms of answers -------------------------------------------------------


@pytest.mark.parametrize("unit", ["token", "word"])
@every_model
def test_a_text_gives_the_same_alone_and_among_others(
    caller: Caller, asked: Asked, unit: str
) -> None:
    texts = ["cat", SENTENCE, "It is what it is."]
    fields = {"module": asked.module, "unit": unit, "return": EVERYTHING}
    together = results(caller, {**fields, "text": texts})
    assert len({len(found["tokens"]) for found in together}) == 3
    for text, found in zip(texts, together, strict=True):
        (alone,) = results(caller, {**fields, "text": text})
        assert_same(found, alone, TOLERANCE)


@every_model
def test_answers_in_json_say_the_same(caller: Caller, asked: Asked) -> None:
    returns = EVERYTHING | {"blocks": asked.text_pair is not None}
    own = {"unit": "word", "ablate": [[1, 0]], "return": returns}
    expected = result(caller, asked, unit="word", ablate=[[1, 0]], return_=returns)
    answer = caller.post(TEXT, asked.fields | own)
    assert answer.status_code == 200, answer.text
    (found,) = answer.json()["results"]
    members, numbers = flat(found), flat(expected)
    assert sorted(members) == sorted(numbers)
    for name, value in numbers.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(np.array(members[name], value.dtype), value, name)
        else:
            assert members[name] == value
