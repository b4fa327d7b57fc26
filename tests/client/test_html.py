"""What notebooks show of results: the numbers of the arrays, and nothing of the text's HTML."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from attention_client import AttentionClient, AttentionResult, TextAttention, TopK
from tests.client.test_results import text_result

RNG = np.random.default_rng(5)
Element = ElementTree.Element
NASTY = ["[CLS]", "<script>alert(1)</script>", "\"&'", "\u202eabc", "]]>", "--><b>", "[SEP]"]
MOST_UNITS = 48


def shown(result: Any) -> Element:
    """The HTML of a result, which is XML too: every bracket and quote is in its place."""
    return ElementTree.fromstring(result._repr_html_())


def sections(result: Any) -> dict[str, Element]:
    root = shown(result)
    return {one.attrib["aria-label"]: one for one in root.iter("section")}


def cells(section: Element) -> np.ndarray:
    rows = [row for row in section.iter("div") if row.get("class") == "row"]
    return np.array([[float(cell.attrib["data-weight"]) for cell in row.iter("i")] for row in rows])


def shades(section: Element) -> np.ndarray:
    return np.array(
        [float(cell.get("style", "--w:0").removeprefix("--w:")) for cell in section.iter("i")]
    )


def words(count: int) -> list[str]:
    return ["[CLS]", *(f"w{number}" for number in range(count - 2)), "[SEP]"]


def random(*shape: int) -> np.ndarray:
    return RNG.random(shape, np.float32)


def tensors_result(**arrays: np.ndarray) -> AttentionResult:
    named = {name.replace("__", "."): array for name, array in arrays.items()}
    return AttentionResult(arrays=named, module=None, provider="P", request_id=None)


# --- Weights of a text -----------------------------------------------------------------


def test_each_head_and_their_mean_can_be_chosen() -> None:
    result = text_result(words(6))  # layers 4 and 1, heads 0, 2 and 9
    found = sections(result)
    expected = {
        f"layer {layer}, head {head}": result.weights[at, of]
        for at, layer in enumerate([4, 1])
        for of, head in enumerate([0, 2, 9])
    }
    mean = result.weights.astype(np.float64).mean((0, 1))
    expected = {"mean of 2 layers, mean of 3 heads": mean} | expected
    assert list(found) == list(expected)
    for caption, section in found.items():
        np.testing.assert_allclose(cells(section), expected[caption], rtol=1e-3)
        assert "".join(section.itertext()).startswith(f"{caption}; rows: queries, columns: keys")


def test_one_panel_is_chosen_at_first_and_the_buttons_are_of_this_result() -> None:
    root = shown(text_result(words(6)))
    form = root.find("form")
    assert form is not None
    buttons = list(form.iter("input"))
    assert [button.get("checked") for button in buttons] == ["checked"] + [None] * 6
    assert {button.attrib["name"] for button in buttons} == {"panel"}
    # A label stands before its section, which the style sheet counts on.
    kinds = [child.tag for child in form]
    assert kinds == ["label", "section"] * 7
    assert not [part for part in root.iter() if "id" in part.attrib]


def test_of_many_heads_the_layers_means_can_be_chosen() -> None:
    weights = random(3, 12, 6, 6)
    result = text_result(
        words(6), arrays={"weights": weights}, layers=[0, 1, 2], heads=list(range(12))
    )
    found = sections(result)
    assert list(found) == ["mean of 3 layers, mean of 12 heads"] + [
        f"layer {layer}, mean of 12 heads" for layer in range(3)
    ]
    np.testing.assert_allclose(
        cells(found["layer 2, mean of 12 heads"]), weights[2].mean(0), rtol=1e-3
    )
    told = shown(result).findtext("p") or ""
    assert told.startswith(
        "to keep notebooks small, not each of 36 is shown; plot(layer=…, head=…)"
    )
    assert shown(text_result(words(6))).find("p") is None


def test_of_many_layers_and_heads_there_is_the_mean() -> None:
    arrays = {"weights": random(16, 16, 5, 5)}
    result = text_result(words(5), arrays=arrays, layers=list(range(16)), heads=list(range(16)))
    assert list(sections(result)) == ["mean of 16 layers, mean of 16 heads"]
    assert not list(shown(result).iter("input"))


def test_one_head_has_no_buttons() -> None:
    result = text_result(words(5), arrays={"weights": random(1, 1, 5, 5)}, layers=[3], heads=[7])
    root = shown(result)
    assert [one.attrib["aria-label"] for one in root.iter("section")] == ["layer 3, head 7"]
    assert not list(root.iter("label"))


def test_the_lines_are_the_largest_weights_of_each_query() -> None:
    result = text_result(words(7), arrays={"weights": random(1, 1, 7, 7)}, layers=[0], heads=[0])
    (section,) = sections(result).values()
    groups = [group for group in section.iter("g") if group.get("class") == "query"]
    assert len(groups) == 7
    for row, group in zip(result.head(0, 0), groups, strict=True):
        keys = [int(line.attrib["data-key"]) for line in group.iter("path")]
        np.testing.assert_array_equal(keys, np.argsort(-row)[:4])
        told = [float(line.attrib["data-weight"]) for line in group.iter("path")]
        np.testing.assert_allclose(told, row[keys], rtol=1e-3)
        ends = [line.attrib["d"].split()[-1] for line in group.iter("path")]
        assert ends == [str(16 * key + 8) for key in keys]


def test_a_key_that_is_not_seen_gets_no_line() -> None:
    causal = np.tril(np.full((5, 5), 0.2, np.float32))[None, None]
    result = text_result(words(5), arrays={"weights": causal}, layers=[0], heads=[0])
    (section,) = sections(result).values()
    groups = [group for group in section.iter("g") if group.get("class") == "query"]
    assert [len(list(group.iter("path"))) for group in groups] == [1, 2, 3, 4, 4]


def test_shades_are_relative_to_the_largest_weight_on_a_word() -> None:
    weights = np.array([[0.9, 0.1, 0.0], [0.5, 0.4, 0.1], [0.6, 0.2, 0.2]], np.float32)
    result = text_result(words(3), arrays={"weights": weights[None, None]}, layers=[0], heads=[0])
    (section,) = sections(result).values()
    np.testing.assert_allclose(
        shades(section), np.minimum(weights / 0.4, 1).ravel(), atol=0.005, rtol=0.01
    )
    assert "full colour: 0.4 or more" in "".join(section.itertext())


def test_rows_that_were_asked_for_have_their_tokens() -> None:
    arrays = {"weights": random(1, 1, 2, 6)}
    result = text_result(words(6), arrays=arrays, layers=[0], heads=[0], queries=[4, 1])
    (section,) = sections(result).values()
    rows = [row.findtext("bdi") for row in section.iter("div") if row.get("class") == "row"]
    assert rows == ["w3", "w0"]
    np.testing.assert_allclose(cells(section), result.head(0, 0), rtol=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_is_shown_as_such(bad: float) -> None:
    weights = np.full((1, 1, 3, 3), 0.25, np.float32)
    weights[0, 0, 1, 1] = bad
    result = text_result(words(3), arrays={"weights": weights}, layers=[0], heads=[0])
    (section,) = sections(result).values()
    np.testing.assert_array_equal(cells(section), weights[0, 0])
    assert shades(section)[4] == 0


# --- Long texts and foreign ones -------------------------------------------------------


def test_a_long_text_is_cut_and_a_line_says_so() -> None:
    arrays = {"weights": random(2, 2, 300, 300)}
    result = text_result(words(300), arrays=arrays, layers=[0, 1], heads=[0, 1])
    (section,) = sections(result).values()  # of this length there is room for one
    assert cells(section).shape == (MOST_UNITS, MOST_UNITS)
    told = "".join(section.itertext())
    assert "(the first 48 of 300 queries and the first 48 of 300 keys)" in told


@pytest.mark.parametrize(
    ("token", "count", "heads"),
    [("word", 16, 3), ("😀&" * 40, 100, 2), ("<" * 500, 512, 6), ("w", 7, 6), ("w", 30, 4)],
)
def test_notebooks_stay_small(token: str, count: int, heads: int) -> None:
    arrays = {"weights": random(2, heads, count, count)}
    result = text_result([token] * count, arrays=arrays, layers=[0, 1], heads=list(range(heads)))
    assert len(result._repr_html_().encode()) < 160_000


def test_html_in_a_text_is_text() -> None:
    arrays = {"weights": random(1, 1, len(NASTY), len(NASTY))}
    result = text_result(NASTY, arrays=arrays, layers=[0], heads=[0], module="<script>m</script>")
    root = shown(result)
    assert not {"script", "b", "img"} & {part.tag for part in root.iter()}
    (section,) = root.iter("section")
    rows = [row.findtext("bdi") for row in section.iter("div") if row.get("class") == "row"]
    assert rows == ["[CLS]", "<script>alert…", "\"&'", "abc", "]]>", "--><b>", "[SEP]"]
    assert "\u202e" not in result._repr_html_()  # nothing turns the lines around it
    assert "<script>m</script>" in (root.findtext("code") or "")


def test_nothing_is_loaded_from_elsewhere() -> None:
    written = text_result(words(6))._repr_html_()
    for forbidden in ("http:", "https:", "//", "@import", "url(", "<script", "src=", "javascript"):
        assert forbidden not in written, forbidden


# --- What else a text's result may have ------------------------------------------------


def test_the_largest_of_each_row_stand_beside_their_tokens() -> None:
    full = np.sort(random(1, 2, 5, 5), axis=-1)[..., ::-1]
    keys = np.argsort(RNG.random((1, 2, 5, 5)), axis=-1).astype(np.int32)
    top = {
        "weights.indices": keys[..., :3],
        "weights.values": full[..., :3],
        "weights.rest": full[..., 3:].sum(-1),
    }
    result = text_result(words(5), arrays=top, layers=[2], heads=[0, 1])
    found = sections(result)
    assert list(found) == ["layer 2, head 0", "layer 2, head 1"]
    rows = [row for row in found["layer 2, head 1"].iter("div") if row.get("class") == "row"]
    for number, row in enumerate(rows):
        spans = [part for part in row.iter("span") if part.get("class") == "key"]
        assert [int(span.attrib["data-key"]) for span in spans] == keys[0, 1, number, :3].tolist()
        names = [span.findtext("bdi") for span in spans]
        assert names == [result.tokens[key] for key in keys[0, 1, number, :3]]
        told = [float(part.attrib["data-weight"]) for part in row.iter("span")]
        whole = [*full[0, 1, number, :3], full[0, 1, number, 3:].sum()]
        np.testing.assert_allclose(told, whole, rtol=1e-3)


def test_a_rollout_is_shown_where_there_are_no_weights() -> None:
    rollout = random(2, 4, 4)
    result = text_result(words(4), arrays={"rollout": rollout}, layers=[1, 5])
    found = sections(result)
    assert list(found) == ["rollout up to layer 1", "rollout up to layer 5"]
    np.testing.assert_allclose(cells(found["rollout up to layer 5"]), rollout[1], rtol=1e-3)


def test_without_any_matrix_there_is_a_line() -> None:
    result = text_result(words(4), arrays={"output": random(4, 2)})
    root = shown(result)
    assert root.findtext("code") == repr(result)
    assert root.find("form") is None


def test_a_text_of_the_service_shows_itself(client: AttentionClient) -> None:
    result = client.text_attention("The cat sat on the mat.", unit="word", layers=[3], heads=[1, 5])
    assert isinstance(result, TextAttention)
    found = sections(result)
    assert list(found) == ["layer 3, mean of 2 heads", "layer 3, head 1", "layer 3, head 5"]
    np.testing.assert_allclose(cells(found["layer 3, head 5"]), result.head(0, 1), rtol=1e-3)


# --- Tensors ---------------------------------------------------------------------------


def test_heads_of_tensors() -> None:
    result = tensors_result(output=random(2, 2, 3, 4), weights=random(2, 2, 3, 5))
    found = sections(result)
    assert list(found) == ["mean of 2 batch elements, mean of 2 heads"] + [
        f"batch element {batch}, head {head}" for batch in range(2) for head in range(2)
    ]
    one = found["batch element 1, head 0"]
    np.testing.assert_allclose(cells(one), result.weights[1, 0], rtol=1e-3)
    assert shown(result).findtext("code") == repr(result)


def test_a_matrix_of_rank_2() -> None:
    result = tensors_result(weights=random(3, 5).astype(np.float16))
    ((caption, section),) = sections(result).items()
    assert caption == "weights"
    np.testing.assert_allclose(cells(section), result.weights, rtol=1e-3)


def test_the_plan_is_told(client: AttentionClient) -> None:
    tensor = np.ones((1, 2, 4, 8), np.float32)
    asked = {"plan": True, "weights": True}
    result = client.attention(tensor, tensor, tensor, return_=asked)
    root = shown(result)
    told = (root.findtext("details/summary") or "") + (root.findtext("details/pre") or "")
    for step in result.plan.steps:
        assert f"{step.kernel}: {', '.join(step.computes)}; {step.dtype}" in told
    assert f"{result.plan.peak_bytes:,} bytes" in told


@pytest.mark.parametrize("rank", [2, 4])
def test_the_largest_of_tensors(rank: int) -> None:
    lead = (1, 2) if rank == 4 else ()
    indices = RNG.integers(0, 30, (*lead, 4, 10), np.int32)
    values, rest = random(*lead, 4, 10), random(*lead, 4)
    top = TopK(indices=indices, values=values, rest=rest)
    result = tensors_result(weights__indices=indices, weights__values=values, weights__rest=rest)
    head = (0, 1) if rank == 4 else ()
    for one in (top, result):
        section = list(sections(one).values())[-1]
        row = [row for row in section.iter("div") if row.get("class") == "row"][2]
        keys = [part.attrib["data-key"] for part in row.iter("span") if "data-key" in part.attrib]
        assert keys == [str(key) for key in indices[*head, 2, :8]]
        told = [float(part.attrib["data-weight"]) for part in row.iter("span")]
        others = rest[*head, 2] + values[*head, 2, 8:].sum()
        np.testing.assert_allclose(told, [*values[*head, 2, :8], others], rtol=1e-3)


@pytest.mark.parametrize("shape", [(1, 2, 0, 5), (0, 3)])
def test_nothing_is_drawn_of_nothing(shape: tuple[int, ...]) -> None:
    assert not sections(tensors_result(weights=np.zeros(shape, np.float32)))
