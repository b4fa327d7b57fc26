"""What the page gives to take along: pictures, numbers, and a link that opens the same again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from tests.system.page.harness import Array, asked, table, visit, weights

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

TEXT = "The animal didn't cross the street because it was too tired."
LINK = f"#text={TEXT.replace(' ', '+')}&layer=4&head=3&view="
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def matrix(url: str) -> Array:
    return np.asarray(weights(url, text=TEXT, layers=[4])[0, 3])


def check_picture(path: Path) -> None:
    """A PNG that decodes whole and is neither blank nor all of two colours."""
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB"))
    assert min(pixels.shape[:2]) > 100
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20
    assert pixels.std() > 5


def check_csv(path: Path, names: list[str], matrix: Array) -> None:
    (_, *columns), *rows = table(path)
    assert [name.strip("␣") for name in columns] == names
    assert [row[0].strip("␣") for row in rows] == names
    found = np.array([row[1:] for row in rows], np.float64)
    # The page has the float32s themselves, the JSON of the service their decimals.
    np.testing.assert_allclose(found, matrix, rtol=1e-6, atol=1e-9)


def check_json(path: Path, url: str, field: str) -> dict[str, Any]:
    """The request that it holds, sent again, has the response that it holds."""
    saved = json.loads(path.read_text())
    result = saved["response"]["results"][0]
    again = asked(url, **saved["request"])
    assert result[field] == again[field]
    assert result["tokens"] == again["tokens"]
    return dict(saved["request"])


def texts(root: ET.Element) -> list[str]:
    return [
        "".join(element.itertext()).strip("\u2066\u2067\u2068\u2069␣ ")
        for element in root.iter(f"{SVG}text")
    ]


@pytest.mark.parametrize("view", ["head", "matrix"])
def test_files_of_one_head_hold_its_weights(
    url: str, tmp_path: Path, matrix: Array, view: str
) -> None:
    visit("taking.files", url, tmp_path, fragment=LINK + view, types=["png", "svg", "csv", "json"])
    answer = asked(url, text=TEXT, layers=[4], heads=[3])
    names = [
        TEXT[start:stop] if stop else token
        for token, (start, stop) in zip(answer["tokens"], answer["offsets"], strict=True)
    ]
    check_picture(tmp_path / "export-png.png")
    check_csv(tmp_path / "export-csv.csv", names, matrix)
    request = check_json(tmp_path / "export-json.json", url, "weights")
    assert request["text"] == TEXT
    assert (request["layers"], request["heads"]) == ([4], [3])

    root = ET.parse(tmp_path / "export-svg.svg").getroot()
    assert root.tag == f"{SVG}svg"
    assert "foreignObject" not in ET.tostring(root, "unicode")
    assert sorted(text for text in texts(root) if text in names) == sorted(names * 2)
    if view == "matrix":
        cells = [one.attrib for one in root.iter(f"{SVG}rect") if "data-value" in one.attrib]
        assert len(cells) == matrix.size
        seen = np.zeros_like(matrix)
        for cell in cells:
            seen[int(cell["data-row"]), int(cell["data-column"])] = float(cell["data-value"])
        np.testing.assert_allclose(seen, matrix, rtol=1e-6, atol=1e-9)
    else:
        lines = [one.attrib for one in root.iter() if "data-weight" in one.attrib]
        assert len(lines) == (matrix >= 0.005).sum()
        for line in lines:
            weight = matrix[int(line["data-query"]), int(line["data-key"])]
            assert float(line["data-weight"]) == pytest.approx(weight, rel=1e-6)


def test_files_of_the_other_views(url: str, tmp_path: Path) -> None:
    for view in ("model", "statistics", "rollout"):
        (tmp_path / view).mkdir()
    visit("taking.files", url, tmp_path / "model", fragment=LINK + "model", types=["png", "json"])
    check_picture(tmp_path / "model" / "export-png.png")
    check_json(tmp_path / "model" / "export-json.json", url, "weights")

    folder = tmp_path / "statistics"
    visit("taking.files", url, folder, fragment=LINK + "statistics", types=["csv", "json"])
    check_json(folder / "export-json.json", url, "statistics")
    wanted = {"weights": False, "output": False, "statistics": True}
    statistics = asked(url, text=TEXT, **{"return": wanted})["statistics"]
    names, *lines = table(folder / "export-csv.csv")
    assert len(lines) == np.array(statistics["entropy"]).size
    for line in lines:
        row = dict(zip(names, line, strict=True))
        layer, head = int(row["layer"]), int(row["head"])
        for name, numbers in statistics.items():
            assert float(row[name]) == pytest.approx(numbers[layer][head], rel=1e-6, abs=1e-9)

    folder = tmp_path / "rollout"
    types = ["png", "svg", "csv", "json"]
    visit("taking.files", url, folder, fragment=LINK + "rollout", types=types)
    check_picture(folder / "export-png.png")
    check_json(folder / "export-json.json", url, "rollout")
    wanted = {"weights": False, "output": False, "rollout": True}
    (rollout,) = asked(url, text=TEXT, layers=[4], **{"return": wanted})["rollout"]
    _, *lines = table(folder / "export-csv.csv")
    np.testing.assert_allclose(
        np.array([line[1:] for line in lines], float), rollout, rtol=1e-6, atol=1e-9
    )


def test_the_link_opens_the_same_view_and_no_log_has_the_text(url: str, tmp_path: Path) -> None:
    text, pair = "Größer & <kleiner>; 100% #1 + 😀", "„Zweiter“ Text?"
    told = visit("taking.link", url, tmp_path, text=text, pair=pair)
    assert told["before"]["controls"]["text"] == text
    assert told["before"]["controls"]["pair"] == pair
    assert told["before"]["held"] == [["query", 1], ["query", 3]]
    assert len(told["before"]["lines"]) > 2
    assert told["after"] == told["before"]
    assert urlsplit(told["copied"]).query == ""
    assert all(
        "Zweiter" not in urlsplit(one)._replace(fragment="").geturl() for one in told["asked"]
    )
    assert told["walked"] == [["3", "tab-head"], ["7", "tab-head"], ["3", "tab-head"]]
