"""Heat maps by matplotlib: what they hold, and what is said where it is missing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from attention_client import AttentionClient, AttentionResult, NotReturnedError, plots
from tests.client.test_results import text_result

RNG = np.random.default_rng(8)


@pytest.fixture(autouse=True)
def _agg() -> Iterator[None]:
    with mpl.rc_context({"backend": "Agg"}):
        yield
        pyplot.close("all")


def drawn(axes: Axes) -> np.ndarray:
    (image,) = axes.get_images()
    array = image.get_array()
    assert array is not None
    return np.ma.getdata(array)


def pixels(axes: Axes) -> np.ndarray:
    """The picture, [height, width, 3]."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def middle_of(axes: Axes, row: int, column: int) -> tuple[int, int]:
    """Where in the picture the middle of a cell is."""
    x, y = axes.transData.transform((column, row))
    return int(axes.figure.bbox.height - y), int(x)


def labels(axes: Axes) -> tuple[list[str], list[str]]:
    return (
        [label.get_text() for label in axes.get_yticklabels()],
        [label.get_text() for label in axes.get_xticklabels()],
    )


def tensors_result(weights: np.ndarray) -> AttentionResult:
    return AttentionResult(arrays={"weights": weights}, module=None, provider="P", request_id=None)


def test_one_head_of_a_text() -> None:
    result = text_result(["[CLS]", "a", "b", "[SEP]"])  # layers 4 and 1, heads 0, 2 and 9
    axes = result.plot(layer=1, head=-1)
    np.testing.assert_array_equal(drawn(axes), result.weights[1, 2].astype(np.float64))
    assert axes.get_title() == "layer 1, head 9"
    assert labels(axes) == (result.tokens, result.tokens)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("key", "query")
    assert [other.get_ylabel() for other in axes.figure.axes if other is not axes] == ["weight"]


def test_the_mean_of_what_was_returned() -> None:
    result = text_result(["[CLS]", "a", "b", "[SEP]"])
    axes = result.plot()
    mean = result.weights.astype(np.float64).mean((0, 1))
    np.testing.assert_allclose(drawn(axes), mean, rtol=1e-12)
    assert axes.get_title() == "mean of 2 layers, mean of 3 heads"


def test_the_picture_is_darker_where_weights_are_larger() -> None:
    weights = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    axes = tensors_result(weights).plot()
    picture = pixels(axes)
    places = [middle_of(axes, row, column) for row in range(3) for column in range(4)]
    brightness = [picture[place].sum() for place in places]
    assert brightness == sorted(brightness, reverse=True)
    blues = mpl.colormaps["Blues"](weights.ravel(), bytes=True)[:, :3].astype(int)
    np.testing.assert_allclose([picture[place] for place in places], blues, atol=2)


def test_colours_are_relative_to_the_largest_weight_on_a_word() -> None:
    weights = np.array([[0.9, 0.1, 0.0], [0.5, 0.4, 0.1], [0.6, 0.2, 0.2]], np.float32)
    result = text_result(
        ["[CLS]", "a", "[SEP]"], arrays={"weights": weights[None, None]}, layers=[0], heads=[0]
    )
    axes = result.plot()
    (image,) = axes.get_images()
    np.testing.assert_allclose(image.get_clim(), (0, 0.4), rtol=1e-6)
    assert image.colorbar is not None
    assert image.colorbar.extend == "max"
    assert image.colorbar.ax.get_ylabel() == "weight"


@pytest.mark.parametrize("token", ["$x_1$", "$\\frac$", "a_b", "\u202eabc", "two words"])
def test_a_token_is_no_formula(token: str) -> None:
    axes = text_result(["[CLS]", token, "[SEP]"]).plot(0, 0)
    pixels(axes)
    assert not any(label.get_parse_math() for label in axes.get_xticklabels())
    assert not any(label.get_parse_math() for label in axes.get_yticklabels())
    shown = {"\u202eabc": "abc", "two words": "two␣words"}.get(token, token)
    assert labels(axes)[0][1] == labels(axes)[1][1] == shown


def test_characters_of_other_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the font that is set up lacks is drawn by one that has it, if one is installed."""
    result = text_result(["[CLS]", "Ⓐ", "[SEP]"])
    with pytest.warns(UserWarning, match="missing from font"):
        pixels(result.plot(0, 0))
    # A font that matplotlib comes with, in the place of those that only some machines have.
    monkeypatch.setattr(plots, "FALLBACK_FONTS", ("No Such Font", "STIXGeneral"))
    pixels(result.plot(0, 0))


def test_rows_that_were_asked_for_have_their_tokens() -> None:
    weights = RNG.random((1, 1, 2, 4))
    result = text_result(
        ["[CLS]", "a", "b", "[SEP]"],
        arrays={"weights": weights},
        layers=[0],
        heads=[0],
        queries=[2, 1],
    )
    assert labels(result.plot()) == (["b", "a"], result.tokens)


def test_long_texts_are_numbered() -> None:
    axes = text_result(["[CLS]", *"abcdefghij" * 9, "[SEP]"]).plot()
    pixels(axes)
    assert len(labels(axes)[0]) < 20
    assert all(label.lstrip("−").isdigit() for label in labels(axes)[0])
    assert drawn(axes).shape == (92, 92)


def test_on_axes_of_the_caller_s() -> None:
    _, (left, right) = pyplot.subplots(1, 2)
    assert text_result(["[CLS]", "a", "[SEP]"]).plot(0, 0, ax=right) is right
    assert not left.get_images()
    assert len(pyplot.get_fignums()) == 1


def test_heads_of_tensors() -> None:
    weights = RNG.random((2, 3, 4, 5)).astype(np.float16)
    result = tensors_result(weights)
    axes = result.plot(2, batch=1)
    np.testing.assert_array_equal(drawn(axes), weights[1, 2].astype(np.float64))
    assert axes.get_title() == "batch element 1, head 2"
    assert labels(axes) == ([*"0123"], [*"01234"])
    mean = result.plot(-1)
    np.testing.assert_allclose(drawn(mean), weights[:, 2].mean(0, dtype=np.float64), rtol=1e-12)
    assert mean.get_title() == "mean of 2 batch elements, head 2"


@pytest.mark.parametrize(
    ("shape", "asked", "message"),
    [
        ((2, 3, 4, 4), {"head": 3}, "head 3: 3 were returned, 0 to 2"),
        ((2, 3, 4, 4), {"batch": -3}, "batch element -3: 2 were returned, 0 to 1"),
        ((4, 4), {"head": 1}, "head 1: 1 were returned, 0 to 0"),
    ],
)
def test_a_head_that_is_not_there(
    shape: tuple[int, ...], asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(IndexError, match=message):
        tensors_result(RNG.random(shape)).plot(**asked)


def test_a_layer_that_is_not_there() -> None:
    with pytest.raises(IndexError, match="layer 2: 2 were returned"):
        text_result(["[CLS]", "a", "[SEP]"]).plot(layer=2)


def test_without_weights_there_is_no_plot() -> None:
    with pytest.raises(NotReturnedError, match="weights"):
        text_result(["[CLS]", "a", "[SEP]"], arrays={}).plot()


def test_a_call_of_the_service(client: AttentionClient) -> None:
    result = client.text_attention("The cat sat.", layers=[3], heads=[1])
    np.testing.assert_array_equal(drawn(result.plot()), result.head(0, 0).astype(np.float64))


MISSING = """
import sys
sys.modules["matplotlib"] = None
from tests.client.test_results import text_result
try:
    text_result(["[CLS]", "a", "[SEP]"]).plot()
except ImportError as error:
    print(error.name, error)
"""


def test_without_matplotlib_it_says_what_to_install() -> None:
    run = subprocess.run(
        [sys.executable, "-c", MISSING], capture_output=True, text=True, check=True
    )
    assert run.stdout == (
        "matplotlib plot needs matplotlib: pip install 'attention-service[plot]'\n"
    )


UNUSED = """
import sys
from tests.client.test_results import text_result
result = text_result(["[CLS]", "a", "[SEP]"])
result._repr_html_(), str(result)
print("matplotlib" in sys.modules)
result.plot()
print("matplotlib" in sys.modules)
"""


def test_matplotlib_is_loaded_for_plots_only() -> None:
    run = subprocess.run([sys.executable, "-c", UNUSED], capture_output=True, text=True, check=True)
    assert run.stdout == "False\nTrue\n"
