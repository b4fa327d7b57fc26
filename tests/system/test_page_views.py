"""The page in a real browser: what is drawn and read there is what the service answers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.system.page.harness import Array, asked, visit, weights

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

TEXT = "The animal didn't cross the street because it was too tired."
PAIR = "Who was too tired?"
# Of lines too faint to be seen none is drawn; the page says below which.
LEAST = 0.005


def drawn(lines: list[list[float]]) -> dict[tuple[int, int], float]:
    """Weight by query and key."""
    return {(int(query), int(key)): weight for query, key, weight, _ in lines}


def check_lines(
    lines: list[list[float]], matrix: Array, rows: Any = None, columns: Any = None
) -> None:
    """Just those of some rows and to some columns, with the matrix' own numbers."""
    seen = drawn(lines)
    of = np.ones(matrix.shape, bool)
    if rows is not None:
        of[:] = False
        of[list(rows)] = True
        of[:, list(columns or [])] = True
    # At the limit itself rounding decides.
    wanted = {
        (int(i), int(j)) for i, j in np.argwhere(of & (matrix >= LEAST)) if matrix[i, j] > LEAST
    }
    assert set(seen) == wanted
    assert len(lines) == len(wanted)
    for (query, key), weight in seen.items():
        assert weight == pytest.approx(matrix[query, key], rel=1e-5, abs=1e-7)


def test_the_lines_of_a_head_are_its_weights(url: str, tmp_path: Path) -> None:
    told = visit("explore.lines", url, tmp_path, text=TEXT, pair=PAIR, layer=5, head=11)
    answer = asked(url, text=TEXT, text_pair=PAIR, layers=[5], heads=[11])
    matrix = np.array(answer["weights"])[0, 0]
    words = [
        (TEXT, PAIR)[segment][start:stop] if segment is not None else token
        for token, segment, (start, stop) in zip(
            answer["tokens"], answer["segments"], answer["offsets"], strict=True
        )
    ]
    assert [label.strip() for label in told["query"]] == words
    assert told["key"] == told["query"]
    check_lines(told["all"], matrix)
    # Heavier weights are never fainter lines.
    shades = sorted((weight, opacity) for *_, weight, opacity in told["all"])
    assert np.all(np.diff([opacity for _, opacity in shades]) >= -1e-6)
    assert shades[-1][1] > 2 * shades[0][1]

    check_lines(told["hovered"]["lines"], matrix, rows=[5])
    order = np.argsort(-matrix[5], kind="stable")[:3]
    numbers = re.findall(r"\((\d+)\) (\d\.\S+?)(?:,|$)", told["hovered"]["readout"])
    assert [int(key) for key, _ in numbers[:3]] == order.tolist()
    for key, number in numbers:
        assert float(number) == pytest.approx(matrix[5, int(key)], abs=6e-5, rel=6e-3)
    check_lines(told["left"], matrix)

    first, second, third = told["clicked"]
    assert first["held"] == [["query", 2]]
    check_lines(first["lines"], matrix, rows=[2])
    assert second["held"] == [["query", 2], ["key", 4]]
    check_lines(second["lines"], matrix, rows=[2], columns=[4])
    assert third["held"] == [["key", 4]]
    check_lines(third["lines"], matrix, rows=[], columns=[4])

    for step in told["sliders"]:
        seen = drawn(step["lines"])
        wanted = {
            (query, int(key)): matrix[query, key]
            for query in range(len(matrix))
            for key in np.argsort(-matrix[query], kind="stable")[: step["topk"]]
            if matrix[query, key] >= max(LEAST, step["threshold"])
        }
        assert set(seen) == set(wanted)
        assert len(wanted) < len(told["all"])


STEPS: list[dict[str, Any]] = [
    {"layer": 2, "head": 9},
    {"unit": "word"},
    {"aggregate": "mean"},
    {"aggregate": "max", "unit": "token"},
    {"heads_off": [0, 1, 2, 3, 4, 5, 6, 7, 8]},
    {"layer": "mean", "aggregate": "mean"},
    {"view": "rollout", "layer": 3},
]


def matrices_expected(url: str) -> list[Array]:
    def whole(**body: Any) -> Array:
        return weights(url, text=TEXT, **body)

    rolled = asked(url, text=TEXT, heads=[9, 10, 11], layers=[3], **{"return": {"rollout": True}})[
        "rollout"
    ]
    return [
        whole(layers=[2])[0, 9],
        whole(layers=[2], unit="word")[0, 9],
        whole(layers=[2], unit="word")[0].mean(0),
        whole(layers=[2])[0].max(0),
        whole(layers=[2])[0, 9:].max(0),
        whole()[:, 9:].mean((0, 1)),
        np.array(rolled[0]),
    ]


def luminance(colours: list[list[int]]) -> Array:
    return np.asarray(np.array(colours) @ [0.2126, 0.7152, 0.0722])


def check_colours(colours: list[list[int]], matrix: Array, *, dark: bool) -> None:
    """Heavier cells are darker on a light ground and lighter on a dark one, never the other way."""
    found = luminance(colours)[np.argsort(matrix.ravel(), kind="stable")]
    steps = np.diff(found) * (1 if dark else -1)
    assert steps.min() >= -2
    assert abs(found[-1] - found[0]) > 60


@pytest.mark.parametrize("dark", [False, True])
def test_every_matrix_reads_as_the_service_answers(url: str, tmp_path: Path, dark: bool) -> None:
    cells = [[1, 1], [3, 8], [8, 3], [10, 2], [0, 10], [9, 9]]
    options: dict[str, Any] = {"text": TEXT, "steps": STEPS, "cells": cells, "dark": dark}
    told: Any = visit("explore.matrices", url, tmp_path, **options)
    expected = matrices_expected(url)
    assert len(told) == len(expected)
    for number, (seen, matrix) in enumerate(zip(told, expected, strict=True)):
        assert (seen["rows"], seen["columns"]) == matrix.shape, STEPS[number]
        for row, column, text in seen["read"]:
            found = re.fullmatch(r".*\((\d+)\) → .*\((\d+)\): (\S+)", text)
            assert found, text
            assert (int(found[1]), int(found[2])) == (row, column)
            assert float(found[3]) == pytest.approx(matrix[row, column], rel=2e-5, abs=1e-7)
        check_colours(seen["colours"], matrix, dark=dark)


def test_a_cell_stays_the_same_under_zoom_and_pan(url: str, tmp_path: Path) -> None:
    told = visit("explore.zoomed", url, tmp_path, text=TEXT, cell=[7, 9])
    assert told["zoom"] > 1.5
    assert len(set(told["read"])) == 1
    number = float(told["read"][0].rpartition(": ")[2])
    assert number == pytest.approx(weights(url, text=TEXT, layers=[0])[0, 0, 7, 9], rel=1e-5)


def test_thumbnails_draw_every_head_and_open_it(url: str, tmp_path: Path) -> None:
    told = visit("explore.heads", url, tmp_path, text=TEXT, opened=[3, 1])
    matrices = weights(url, text=TEXT)
    layers, heads, units, _ = matrices.shape
    names = {f"thumb-{layer}-{head}" for layer in range(layers) for head in range(heads)}
    assert set(told["pictures"]) == names
    for name, picture in told["pictures"].items():
        layer, head = map(int, name.split("-")[1:])
        assert picture["width"] == picture["height"] == units
        check_colours(picture["colours"], matrices[layer, head], dark=False)
    assert told["chosen"] == ["3", "1"]
    check_lines(told["lines"], matrices[3, 1])


def test_the_numbers_of_heads_are_a_table_that_sorts(url: str, tmp_path: Path) -> None:
    told = visit("explore.statistics", url, tmp_path, text=TEXT)
    wanted = {"weights": False, "output": False, "statistics": True, "classes": True}
    answer = asked(url, text=TEXT, **{"return": wanted})
    names = ["entropy", "maximum", "distance", "first", "separator", "itself"]
    numbers = np.array([answer["statistics"][name] for name in names])
    labels = answer["classes"]["labels"]
    places = [(layer, head) for layer in range(len(labels)) for head in range(len(labels[0]))]
    assert [one.strip() for one in told["header"]] == ["layer", "head", *names, "class"]
    plain, falling, rising, by_class = told["orders"]

    def places_of(rows: list[list[str]]) -> list[tuple[int, int]]:
        return [(int(row[0]), int(row[1])) for row in rows]

    assert places_of(plain) == places
    for row, (layer, head) in zip(plain, places, strict=True):
        np.testing.assert_allclose(
            np.array(row[2:8], float), numbers[:, layer, head], rtol=1e-5, atol=1e-7
        )
        assert row[8] == (labels[layer][head] or "")
    entropy = {place: numbers[0][place] for place in places}
    for rows, sign in ((falling, -1), (rising, 1)):
        found = [sign * entropy[place] for place in places_of(rows)]
        assert sorted(places_of(rows)) == places
        assert np.diff(found).min() >= -1e-7
    classes = [labels[layer][head] or "" for layer, head in places_of(by_class)]
    assert classes == sorted(classes)
    assert told["sort"] == "ascending"
    assert tuple(map(int, told["chosen"])) == places_of(by_class)[3]


def test_a_worked_example_is_seen_at_once_and_others_by_a_click(url: str, tmp_path: Path) -> None:
    told = visit("explore.first", url, tmp_path)
    assert len(told["text"]) > 20
    assert len(told["lines"]) > 5
    assert len(told["examples"]) >= 3
    texts = [example["texts"] for example in told["examples"]]
    assert len({text for text, _ in texts}) == len(texts)
    assert any(pair for _, pair in texts)
    assert not any(example["problem"] for example in told["examples"])


def test_after_a_refusal_nothing_stale_is_shown_and_the_text_can_be_cut(
    url: str, tmp_path: Path
) -> None:
    long = "the cat sat " * 340  # 1,020 words, and the model takes 512 tokens
    told = visit("explore.refused", url, tmp_path, text=TEXT, long=long, errors=2)
    files = ["PNG", "SVG", "CSV", "JSON", "Copy link"]
    assert told["shown"]["tokens"] > 0
    assert told["shown"]["files"] == files
    cure = "Show its first 512 tokens"
    for name in ("refused", "another"):  # another text is not cut unasked
        seen = told[name]
        assert (seen["tokens"], seen["files"], seen["cure"]) == (0, [], cure), name
        assert "longer than the 512 tokens that all-MiniLM-L6-v2 takes" in seen["problem"]
    for name in ("cut", "linked"):
        seen = told[name]
        assert (seen["tokens"], seen["files"], seen["problem"]) == (512, files, ""), name
        # 510 of 1,020 words stand between [CLS] and [SEP].
        assert seen["status"].startswith("first 512 tokens, 50% of the text")
    assert (told["empty"]["tokens"], told["empty"]["files"]) == (0, [])
    assert "Type a text" in told["empty"]["status"]


def test_a_link_to_what_is_not_there_says_so(url: str, tmp_path: Path) -> None:
    told = visit("explore.linked", url, tmp_path, fragment="#text=Hello&layer=9&head=99")
    assert told["chosen"] == ["all-MiniLM-L6-v2", "5", "11"]
    assert told["problem"].splitlines() == [
        "all-MiniLM-L6-v2 has no layer 9: this is layer 5.",
        "all-MiniLM-L6-v2 has no head 99: this is head 11.",
    ]
    assert "layer=5&head=11" in told["fragment"]
    assert told["files"]
    fine = visit("explore.linked", url, tmp_path, fragment="#text=Hello&layer=5&head=11")
    assert fine["problem"] == ""


def test_words_are_called_words_and_a_rollout_says_its_layers(url: str, tmp_path: Path) -> None:
    told = visit("explore.ledes", url, tmp_path, text="Hello+there")
    for lede, _ in told.values():
        assert "word" in lede
        assert "token" not in lede
    assert told["rollout"][1].endswith("layers 0 to 3")


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_layer_head_and_view_are_in_sight(
    url: str, tmp_path: Path, width: int, height: int
) -> None:
    told = visit("explore.places", url, tmp_path, text=TEXT, width=width, height=height)
    if width > 1000:
        assert max(told["bottoms"]) < height / 2
    # The first example is of layer 5, head 11: the last of each, and the first comes after it.
    assert told["steps"] == [["0", "11"], ["0", "0"], ["0", "11"], ["5", "11"]]
    assert -1 < told["top"] < height / 2  # scrolling ends at whole pixels
