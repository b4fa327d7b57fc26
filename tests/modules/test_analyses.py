"""What is computed of attention weights, against plain loops in Python's own floats."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from attention_service.modules.analyses import flow as flows
from attention_service.modules.analyses import measures, rollout
from attention_service.modules.analyses.flow import flow
from attention_wire.units import Units

HEADS = 3
# [CLS] the cat the cat sat [SEP] the cat sat cat cat [SEP]
IDS = [101, 7, 8, 7, 8, 9, 102, 7, 8, 9, 8, 8, 102]
SPECIAL = [1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1]
SEGMENTS = [None, 0, 0, 0, 0, 0, None, 1, 1, 1, 1, 1, None]

PAIR = Units.of_tokens(IDS, SPECIAL, SEGMENTS)
NO_SPECIAL = Units.of_tokens([5, 6, 5, 6, 5], [0] * 5, [0] * 5)
ALL_SPECIAL = Units.of_tokens([1, 1, 1], [1] * 3, [None] * 3)
SINGLE = Units.of_tokens([3], [0], [0])
UNITS = {"pair": PAIR, "no special": NO_SPECIAL, "all special": ALL_SPECIAL, "single": SINGLE}


def random_weights(
    heads: int, rows: int, keys: int, *, seed: int = 0, causal: bool = False, sharp: float = 2.0
) -> np.ndarray:
    """Rows of a softmax, float32, a few of them zero or short of 1 as masks and sinks make them."""
    random = np.random.default_rng(seed)
    weights = np.exp(sharp * random.standard_normal((heads, rows, keys)))
    if causal:
        weights = np.tril(weights)
    weights /= weights.sum(axis=-1, keepdims=True)
    weights[random.random((heads, rows)) < 0.1] *= 0.7
    weights[random.random((heads, rows)) < 0.05] = 0
    return weights.astype(np.float32)


def gathered(kind: Any, units: Units, weights: np.ndarray) -> Any:
    """The result of a measure that gets the rows two at a time, in no order."""
    found = kind(weights.shape[0], units)
    starts = list(range(0, len(units), 2))
    for start in starts[1::2] + starts[::2]:
        rows = slice(start, min(start + 2, len(units)))
        found.add(rows, weights[:, rows])
    return found.result()


# --- Measures --------------------------------------------------------------------------


def plain_entropy(row: np.ndarray) -> float:
    return -math.fsum(w * math.log(w) for w in row.tolist() if w > 0)


def test_entropy() -> None:
    weights = random_weights(HEADS, 5, 900, seed=3)
    weights[0, 0] = np.eye(900, dtype=np.float32)[4]
    weights[0, 1] = np.float32(1 / 900)
    found = measures.entropy(weights)
    assert found.dtype == np.float32
    expected = [[plain_entropy(row) for row in head] for head in weights]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found[0, 0] == 0
    assert not np.signbit(found[0, 0])
    assert found[0, 1] == pytest.approx(math.log(900), abs=1e-6)


def plain_statistics(units: Units, head: np.ndarray) -> dict[str, float]:
    count = len(units)
    rows = [[float(w) for w in row] for row in head]
    separators = [key for key in range(1, count) if units.special[key]]
    return {
        "entropy": math.fsum(map(plain_entropy, head)) / count,
        "maximum": math.fsum(max(row) for row in rows) / count,
        "distance": math.fsum(
            w * abs(i - j) for i, row in enumerate(rows) for j, w in enumerate(row)
        )
        / count,
        "first": math.fsum(row[0] for row in rows) / count,
        "separator": math.fsum(row[key] for row in rows for key in separators) / count,
        "itself": math.fsum(rows[i][i] for i in range(count)) / count,
    }


def plain_classes(units: Units, head: np.ndarray) -> dict[str, float]:
    count, ids = len(units), units.ids.tolist()
    keys: dict[str, Callable[[int], list[int]]] = {
        "previous": lambda i: [j for j in range(count) if j == i - 1],
        "next": lambda i: [j for j in range(count) if j == i + 1],
        "first": lambda i: [0] if i else [],
        "separator": lambda i: (
            []
            if units.special[i]
            else [j for j in range(count) if units.special[j] and j]  # key 0 is `first`
        ),
        "duplicate": lambda i: (
            [] if units.special[i] else [j for j in range(i) if ids[j] == ids[i]]
        ),
        "induction": lambda i: (
            []
            if units.special[i]
            else [j for j in range(1, i + 1) if j - 1 < i and ids[j - 1] == ids[i]]
        ),
    }
    scores = {}
    for name, of_row in keys.items():
        masses = [
            math.fsum(float(head[i, j]) for j in of_row(i)) for i in range(count) if of_row(i)
        ]
        scores[name] = math.fsum(masses) / max(len(masses), 1)
    return scores


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("units", UNITS.values(), ids=UNITS)
@pytest.mark.parametrize(
    ("kind", "plain"),
    [(measures.Statistics, plain_statistics), (measures.Classes, plain_classes)],
)
def test_numbers_of_heads(kind: Any, plain: Any, units: Units, causal: bool) -> None:
    weights = random_weights(HEADS, len(units), len(units), seed=len(units), causal=causal)
    found = gathered(kind, units, weights)
    expected = [plain(units, head) for head in weights]
    assert list(found) == list(expected[0])
    for name, values in found.items():
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, [of[name] for of in expected], atol=1e-6, err_msg=name)


def test_an_induction_head_is_one() -> None:
    random = np.random.default_rng(1)
    half = random.permutation(20)
    units = Units.of_tokens(np.tile(half, 2).tolist(), [0] * 40, [0] * 40)
    weights = random_weights(2, 40, 40, seed=2, causal=True)
    # The second time, head 0 looks at what followed the first; the first time, anywhere.
    weights[0, 20:] = np.eye(40, dtype=np.float32)[np.arange(1, 21)]
    scores = gathered(measures.Classes, units, weights)
    assert scores["induction"][0] == 1
    assert scores["duplicate"][0] == 0
    assert scores["induction"][1] < 0.2
    assert labels(units, weights) == ["induction", None]


@pytest.mark.parametrize(
    ("name", "shift"), [("previous", -1), ("next", 1), ("first", None), ("duplicate", -20)]
)
def test_heads_of_one_kind_score_one(name: str, shift: int | None) -> None:
    units = Units.of_tokens(list(range(20)) * 2, [0] * 40, [0] * 40)
    keys = np.zeros(40, int) if shift is None else np.clip(np.arange(40) + shift, 0, 39)
    weights = np.eye(40, dtype=np.float32)[keys][None]
    scores = gathered(measures.Classes, units, weights)
    assert scores[name] == 1
    assert labels(units, weights) == [name]


def test_labels_are_of_the_highest_score_that_is_high_enough() -> None:
    units = Units.of_tokens(range(10), [0] * 10, [0] * 10)
    weights = np.zeros((4, 10, 10), np.float32)
    rows = np.arange(1, 9)
    for head, (before, after) in enumerate([(0.38, 0.1), (0.42, 0.1), (0.5, 0.6), (0.5, 0.1)]):
        weights[head, rows, rows - 1] = before * 9 / 8
        weights[head, rows, rows + 1] = after * 9 / 8
    assert labels(units, weights) == [None, "previous", "next", "previous"]


@pytest.mark.parametrize(("repeats", "label"), [(1, None), (2, None), (3, "duplicate")])
def test_a_label_is_of_more_than_a_row_or_two(repeats: int, label: str | None) -> None:
    ids = [*range(20), *range(repeats)]
    units = Units.of_tokens(ids, [0] * len(ids), [0] * len(ids))
    weights = np.zeros((1, len(ids), len(ids)), np.float32)
    for again in range(repeats):
        weights[0, 20 + again, again] = 1
    assert gathered(measures.Classes, units, weights)["duplicate"] == 1
    assert labels(units, weights) == [label]


def labels(units: Units, weights: np.ndarray) -> list[str | None]:
    found = measures.Classes(len(weights), units)
    found.add(slice(0, len(units)), weights)
    return found.labels()


@pytest.mark.parametrize("units", UNITS.values(), ids=UNITS)
def test_masses_between_texts(units: Units) -> None:
    weights = random_weights(HEADS, len(units), len(units), seed=7)
    found = gathered(measures.Blocks, units, weights)
    assert found.dtype == np.float32
    assert found.shape == (HEADS, 2, 2)
    of = units.segments.tolist()
    for head, a, b in np.ndindex(found.shape):
        rows = [i for i in range(len(units)) if of[i] == a]
        mass = math.fsum(
            float(weights[head, i, j]) for i in rows for j in range(len(units)) if of[j] == b
        )
        assert found[head, a, b] == pytest.approx(mass / max(len(rows), 1), abs=1e-6)


def test_mean_over_heads() -> None:
    weights = random_weights(HEADS, len(PAIR), len(PAIR), seed=8)
    found = gathered(measures.Mean, PAIR, weights)
    assert found.dtype == np.float64
    for i, j in np.ndindex(found.shape):
        expected = math.fsum(float(w) for w in weights[:, i, j]) / HEADS
        assert found[i, j] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("kind", ["random", "ties", "zeros", "signed"])
def test_largest(kind: str, k: int) -> None:
    weights = random_weights(HEADS, 6, 40, seed=k)
    if kind == "ties":
        weights = np.round(weights * 8).astype(np.float32) / 8
    elif kind == "zeros":
        weights = np.where(weights < 0.1, np.float32(-0.0), np.float32(0.0))
    elif kind == "signed":
        weights -= np.float32(0.02)
    found = measures.largest(weights, k)
    assert [found[name].dtype for name in ("indices", "values", "rest")] == [
        np.int32,
        np.float32,
        np.float32,
    ]
    for place in np.ndindex(weights.shape[:-1]):
        row = [float(w) for w in weights[place]]
        order = [key for _, key in sorted((-w, key) for key, w in enumerate(row))]
        assert found["indices"][place].tolist() == order[:k]
        assert found["values"][place].tolist() == [row[key] for key in order[:k]]
        rest = math.fsum(row[key] for key in order[k:])
        assert found["rest"][place] == pytest.approx(max(rest, 0), abs=1e-6)
        assert found["rest"][place] >= 0


# --- Rollout and flow ------------------------------------------------------------------


def layers_of(units: int, layers: int, *, causal: bool, seed: int) -> list[np.ndarray]:
    return [
        random_weights(4, units, units, seed=100 * seed + layer, causal=causal)
        .astype(np.float64)
        .mean(axis=0)
        for layer in range(layers)
    ]


def plain_mixing(mean: np.ndarray) -> list[list[float]]:
    mixed = [
        [0.5 * float(w) + 0.5 * (i == j) for j, w in enumerate(row)] for i, row in enumerate(mean)
    ]
    return [[w / math.fsum(row) for w in row] for row in mixed]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("units", [1, 2, 7])
def test_rollout(units: int, causal: bool) -> None:
    expected: list[list[float]] | None = None
    found = None
    for mean in layers_of(units, 4, causal=causal, seed=1):
        mixed = plain_mixing(mean)
        if expected is None:
            expected = mixed
        else:
            below = expected
            expected = [
                [math.fsum(row[k] * below[k][j] for k in range(units)) for j in range(units)]
                for row in mixed
            ]
        found = rollout.step(mean, found)
        np.testing.assert_allclose(found, expected, atol=1e-12)
        np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-12)


Node = tuple[int, int]  # level, unit
Pipes = dict[Node, dict[Node, float]]


def pipes_of(means: list[np.ndarray]) -> Pipes:
    pipes: Pipes = {}
    for level, mean in enumerate(means):
        for i, row in enumerate(plain_mixing(mean)):
            for j, width in enumerate(row):
                pipes.setdefault((level + 1, i), {})[level, j] = width
                pipes.setdefault((level, j), {})[level + 1, i] = 0.0
    return pipes


def shortest_ways(pipes: Pipes, source: Node) -> dict[Node, Node]:
    came = {source: source}
    queue = deque([source])
    while queue:
        node = queue.popleft()
        for other, width in pipes[node].items():
            if width > 1e-12 and other not in came:
                came[other] = node
                queue.append(other)
    return came


def plain_flow(means: list[np.ndarray], row: int, key: int) -> float:
    """The largest flow by Edmonds and Karp; a cut no wider proves that it is."""
    source, sink = (len(means), row), (0, key)
    residual = pipes_of(means)
    total = 0.0
    while sink in (came := shortest_ways(residual, source)):
        path = [sink]
        while path[-1] != source:
            path.append(came[path[-1]])
        steps = list(zip(path[1:], path, strict=False))
        width = min(residual[a][b] for a, b in steps)
        for a, b in steps:
            residual[a][b] -= width
            residual[b][a] += width
        total += width
    cut = math.fsum(
        width
        for a, others in pipes_of(means).items()
        for b, width in others.items()
        if a in came and b not in came
    )
    assert cut == pytest.approx(total, abs=1e-9)
    return total


def nothing() -> None:
    """Work that nobody cancels."""


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("units", "layers"), [(1, 1), (1, 4), (5, 1), (5, 2), (5, 3), (6, 5)])
def test_flow(units: int, layers: int, causal: bool) -> None:
    means = layers_of(units, layers, causal=causal, seed=2)
    found = flow(means, nothing)
    assert found.dtype == np.float32
    assert found.shape == (units, units)
    for i, j in np.ndindex(found.shape):
        assert found[i, j] == pytest.approx(plain_flow(means, i, j), abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_flow_through_narrow_layers(seed: int) -> None:
    """Attention to few keys: flow has to go back up and round, where a greedy one ends short."""
    random = np.random.default_rng(seed)
    means = []
    for _ in range(5):
        mean = np.zeros((7, 7))
        for row in mean:
            row[random.choice(7, 2, replace=False)] = 0.5
        means.append(mean)
    found = flow(means, nothing)
    for i, j in np.ndindex(found.shape):
        assert found[i, j] == pytest.approx(plain_flow(means, i, j), abs=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_flow_is_bounded(causal: bool) -> None:
    """By the simplest cuts above, by the rollout below; and causal rows get nothing from later."""
    means = layers_of(16, 6, causal=causal, seed=3)
    found = flow(means, nothing)
    mixed = [np.array(plain_mixing(mean)) for mean in means]
    assert (found <= np.minimum(1, mixed[0].sum(axis=0)) + 1e-6).all()
    rolled = mixed[0]
    for layer in mixed[1:]:
        rolled = layer @ rolled
    assert (found >= rolled - 1e-6).all()
    if causal:
        assert (np.triu(found, 1) == 0).all()
        # Only its own pipe leads a first row to the first input, as wide as a row.
        assert found[0, 0] == pytest.approx(1, abs=1e-6)


def test_flow_in_chunks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    means = layers_of(9, 4, causal=False, seed=4)
    whole = flow(means, nothing)
    monkeypatch.setattr(flows, "_CHUNK_BYTES", 1)
    np.testing.assert_allclose(flow(means, nothing), whole, atol=1e-7)


def test_flow_can_be_ended() -> None:
    calls = []

    class EndedError(Exception):
        pass

    def check() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise EndedError

    with pytest.raises(EndedError):
        flow(layers_of(16, 6, causal=False, seed=5), check)
    assert len(calls) == 3
