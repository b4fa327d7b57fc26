"""The command `attend` over a text: maps, lists, pictures and JSON."""

from __future__ import annotations

import json
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attention_service.commands.heat_map import MOST_LABELLED, heat_map
from attention_wire.maps import attention_map
from tests.conftest import GOLDENS, TEXT_MODULE
from tests.service.test_cli import fails_here, run_here

# What the goldens were recorded of: transformers' own weights.
CASES = json.loads((GOLDENS / "text.json").read_text())["cases"]
GOLDEN = next(case for case in CASES if case["id"] == "pair")
WEIGHTS = np.load(GOLDENS / "text.npz")["pair.weights"].astype(np.float64)
TEXTS = (GOLDEN["text"], "--pair", GOLDEN["text_pair"])


def misused(*words: str | Path) -> str:
    result = run_here(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    return result.stderr


@pytest.mark.parametrize(
    ("words", "layers", "heads", "caption"),
    [
        (("--layer", "3", "--head", "5"), [3], [5], "layer 3, head 5"),
        (("--layer", "3"), [3], list(range(12)), "layer 3, mean of all heads"),
        (
            ("--head", "1", "--head", "7", "--layer", "0", "--layer", "5"),
            [0, 5],
            [1, 7],
            "mean of layers 0, 5, mean of heads 1, 7",
        ),
        ((), list(range(6)), list(range(12)), "mean of all layers, mean of all heads"),
    ],
)
def test_a_text_is_drawn(
    text_module: Path, words: tuple[str, ...], layers: list[int], heads: list[int], caption: str
) -> None:
    result = run_here("attend", *TEXTS, "--modules", text_module, *words)
    mean = WEIGHTS[np.ix_(layers, heads)].mean((0, 1))
    special = [token in {"[CLS]", "[SEP]"} for token in GOLDEN["tokens"]]
    expected = attention_map(GOLDEN["tokens"], mean, special=special, caption=caption)
    assert (result.stdout, result.stderr) == (f"{expected}\n", "")


def test_words_are_drawn_as_words(text_module: Path) -> None:
    words = ("--unit", "word", "--modules", text_module)
    drawing = run_here("attend", "unbelievably tokenized", *words).stdout
    labels = [line.split(" ")[0] for line in drawing.splitlines()[-5:-1]]
    assert labels == ["[CLS]", "unbelievably", "tokenized", "[SEP]"]


def test_the_keys_that_each_row_attends_to_most(text_module: Path) -> None:
    words = ("--layer", "2", "--head", "4", "--top-k", "3")
    result = run_here("attend", *TEXTS, "--modules", text_module, *words)
    assert result.stdout.lstrip().startswith("layer 2, head 4")
    rows = re.findall(r"^│ (.+?) +│ (.+?) +│ (.+?) +│ (.+?) +│$", result.stdout, re.MULTILINE)
    tokens = GOLDEN["tokens"]
    assert [row[0] for row in rows] == tokens
    for (_, *cells), weights in zip(rows, WEIGHTS[2, 4], strict=True):
        largest = np.sort(weights)[::-1][:3]
        for cell, weight in zip(cells, largest, strict=True):
            token, _, shown = cell.rpartition(" ")
            assert float(shown) == pytest.approx(weight, abs=6e-4)
            near = np.abs(weights - weight) < 1e-5
            assert token in {tokens[at] for at in np.flatnonzero(near)}


def test_more_keys_than_there_are(text_module: Path) -> None:
    result = run_here("attend", "cat", "--top-k", "100", "--modules", text_module)
    header = result.stdout.splitlines()[2]
    assert re.findall(r"\d+", header) == ["1", "2", "3"]
    assert misused("attend", "cat", "--top-k", "0")


def test_a_picture(text_module: Path, tmp_path: Path) -> None:
    path = tmp_path / "map.png"
    words = ("--layer", "1", "--head", "2", "--png", path)
    result = run_here("attend", *TEXTS, "--modules", text_module, *words)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", f"wrote {path}\n")
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert min(image.size) > 18 * len(GOLDEN["tokens"])
    missing = tmp_path / "missing" / "map.png"
    assert f"{missing} cannot be written: No such file" in fails_here(
        "attend", "a cat", "--modules", text_module, "--png", missing
    )


def test_json_is_what_the_service_would_send(text_module: Path) -> None:
    words = ("--layer", "3", "--unit", "word", "--modules", text_module)
    answer = json.loads(run_here("attend", *TEXTS, *words, "--json").stdout)
    result = answer["results"][0]
    count = len(result["words"]["text"])
    assert np.shape(result["weights"]) == (1, 12, count, count)
    assert len(result["output"]) == len(GOLDEN["tokens"])
    words = ("--layer", "3", "--modules", text_module, "--json")
    (tokens,) = json.loads(run_here("attend", *TEXTS, *words).stdout)["results"]
    np.testing.assert_allclose(tokens["weights"][0], WEIGHTS[3], atol=1e-5)
    packed = run_here("attend", "a cat", "--tensor-format", "base64", "--modules", text_module)
    assert json.loads(packed.stdout)["results"][0]["weights"]["dtype"] == "float32"


def test_options_that_do_not_go_together(text_module: Path, tmp_path: Path) -> None:
    message = "--top-k and --png draw a text"
    for words in (("a", "--json", "--top-k", "1"), ("a", "--tensor-format", "list", "--png", "x")):
        assert message in misused("attend", *words)
    request = tmp_path / "request.json"
    request.write_text('{"text": "a"}')
    assert message in misused("attend", request, "--png", "x.png")
    assert '"text_pair"' in misused("attend", request, "--pair", "b")
    assert ": 'letter' is not one of token, word" in misused("attend", "a", "--unit", "letter")
    assert "'3,4' is no number; for several, repeat" in misused("attend", "a", "--layer", "3,4")
    assert "name a file *.png" in misused("attend", "a", "--png", tmp_path / "map.jpg")
    assert misused("attend", "a", "--png", tmp_path)
    wrong = fails_here("attend", "a", "--head", "12", "--modules", text_module)
    assert wrong.startswith("attention-service: --head: there is no head 12: ")


@pytest.mark.slow
def test_a_text_in_a_file_or_from_standard_input(text_module: Path, tmp_path: Path) -> None:
    words = ("--layer", "3", "--modules", text_module)
    expected = run_here("attend", "The cat sat.", *words).stdout
    assert run_here("attend", "-", *words, stdin="The cat sat.\n").stdout == expected
    file = tmp_path / "text.txt"
    file.write_text("The cat sat.\n")
    assert run_here("attend", file, *words).stdout == expected
    file.write_text(' {"text": "The cat sat."}')  # what begins like an object is a request
    assert json.loads(run_here("attend", file, *words).stdout)["results"]
    file.write_bytes(b"\xff")
    assert "neither a text in UTF-8 nor a request" in fails_here("attend", file, *words)
    (tmp_path / "list.json").write_text("[1]")
    assert "must be a JSON object" in fails_here("attend", tmp_path / "list.json")


@pytest.mark.slow
def test_a_text_that_is_too_long_is_cut_when_asked(text_module: Path) -> None:
    words = ("--layer", "0", "--head", "0", "--top-k", "1", "--modules", text_module)
    assert "set truncate" in fails_here("attend", "word " * 600, *words)
    result = run_here("attend", "word " * 600, *words, "--truncate")
    assert len(re.findall("^│ word ", result.stdout, re.MULTILINE)) == 510


@pytest.mark.slow
def test_only_the_module_that_is_asked_for_is_loaded(
    text_module: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / TEXT_MODULE).symlink_to(text_module / TEXT_MODULE)
    (tmp_path / "broken").mkdir()
    words = ("attend", "a", "--modules", tmp_path)
    expected = run_here(*words).stdout
    assert "module broken refused" in caplog.text
    caplog.clear()
    assert run_here(*words, "--module", TEXT_MODULE).stdout == expected
    assert "broken" not in caplog.text


# --- Pictures --------------------------------------------------------------------------


def pixels(labels: list[str], weights: np.ndarray, special: list[int]) -> np.ndarray:
    picture = heat_map(labels, weights, special=np.array(special, bool), caption="c")
    with Image.open(BytesIO(picture)) as image:
        return np.asarray(image)  # palette indices, which are the shades


def test_cells_are_as_dark_as_their_weights() -> None:
    """Shades are relative to the largest weight on a word, 0.6; above it they are as dark."""
    weights = np.array([[0.9, 0.1, 0.0], [0.25, 0.5, 0.25], [np.nan, 0.4, 0.6]])
    cells = pixels(["[CLS]", "a", "b"], weights, [1, 0, 0])
    # The cells are the lower right corner, but for the gap at its edges.
    square = cells[-6 - 3 * 18 : -6]
    left = next(at for at in range(square.shape[1]) if (square[18:36, at : at + 18] == 106).all())
    middle = square[9::18, left + 9 : left + 9 + 3 * 18 : 18]
    expected = np.rint(255 * np.clip(np.nan_to_num(weights) / 0.6, 0, 1))
    np.testing.assert_array_equal(middle, expected)


def test_labels_are_drawn_as_long_as_they_fit() -> None:
    few = pixels(["word"] * MOST_LABELLED, np.eye(MOST_LABELLED), [0] * MOST_LABELLED)
    assert few.shape[1] > 18 * MOST_LABELLED
    more = MOST_LABELLED + 1
    many = pixels(["word"] * more, np.eye(more), [0] * more)
    assert few.shape[1] > many.shape[1] > more
    assert (many == 255).sum() > more


@pytest.mark.parametrize("weights", [np.zeros((2, 2)), np.zeros((0, 0))])
def test_nothing_to_draw(weights: np.ndarray) -> None:
    size = len(weights)
    assert pixels(["a"] * size, weights, [0] * size).size


def test_a_label_that_no_font_has_is_written_as_its_number() -> None:
    def drawn(label: str) -> np.ndarray:
        return pixels([label], np.ones((1, 1)), [0])

    np.testing.assert_array_equal(drawn("\U000cfffe"), drawn(r"\ucfffe"))
    assert drawn("a" * 24).shape != drawn("a" * 23).shape
    assert drawn("a" * 25).shape == drawn("a" * 400).shape
