"""Weights drawn by matplotlib, which comes with the extra ``plot``."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from attention_wire.maps import printable, shade_limit
from attention_wire.tensors import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_LABELLED = 64
"""Rows and columns that get a label each; past that matplotlib numbers some of them."""

# Fonts of many operating systems for what matplotlib's own lack: Chinese, Japanese and Korean,
# and signs such as emoji.
FALLBACK_FONTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans JP", "Noto Sans SC", "Noto Sans KR",
    "Source Han Sans", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback",
    "IPAexGothic", "NanumGothic", "Hiragino Sans", "PingFang SC", "Apple SD Gothic Neo",
    "Yu Gothic", "Microsoft YaHei", "Malgun Gothic", "Arial Unicode MS", "Noto Emoji",
    "Segoe UI Emoji", "Symbola",
)  # fmt: skip

_LABEL = 24
_INCHES = 0.22
_LEAST_INCHES, _MOST_INCHES = 2.5, 10.0


def heat_map(
    weights: Array,
    rows: Sequence[str],
    keys: Sequence[str],
    *,
    words: Array,
    title: str,
    ax: Axes | None,
) -> Axes:
    """One matrix of weights as a heat map with a colour bar.

    Colours are relative to the largest weight on a word, as in
    :func:`attention_client.attention_map`; where a special token draws more, the colour bar ends
    in an arrow.

    Args:
        weights: float64 [L, S]; cells that are no numbers stay empty.
        rows: L labels, the queries.
        keys: S labels.
        words: bool [S], true for each key that is no special token.
        title: what is drawn.
        ax: where to draw; on a new figure by default.

    Returns:
        The axes, whose ``figure`` can be saved.

    Raises:
        ImportError: matplotlib is not installed.
    """
    pyplot = _pyplot()
    axes: Axes
    if ax is not None:
        axes = ax
    else:
        size = [
            min(max(_INCHES * count, _LEAST_INCHES), _MOST_INCHES) + margin
            for count, margin in ((len(keys), 2.5), (len(rows), 1.5))
        ]
        axes = pyplot.figure(figsize=size, layout="constrained").add_subplot()
    limit = shade_limit(weights, words)
    image = axes.imshow(weights, cmap="Blues", vmin=0, vmax=limit or 1, interpolation="nearest")
    is_more = bool(np.any(weights[np.isfinite(weights)] > limit))
    axes.figure.colorbar(image, ax=axes, extend="max" if is_more else "neither", label="weight")
    axes.set_title(title, parse_math=False)
    axes.set_xlabel("key")
    axes.set_ylabel("query")
    if max(len(rows), len(keys)) <= MOST_LABELLED:
        labels: dict[str, Any] = {"parse_math": False, "fontfamily": _families()}
        axes.set_xticks(range(len(keys)), list(map(_label, keys)), rotation=90, **labels)
        axes.set_yticks(range(len(rows)), list(map(_label, rows)), **labels)
    return axes


def _label(label: str) -> str:
    shown = printable(label)
    return shown if len(shown) <= _LABEL else shown[: _LABEL - 1] + "…"


def _families() -> list[str]:
    """The font that is set up, and behind it those of this machine that have more characters."""
    matplotlib = importlib.import_module("matplotlib")
    installed = importlib.import_module("matplotlib.font_manager").fontManager.get_font_names()
    families: list[str] = matplotlib.rcParams["font.family"]
    return [*families, *(name for name in FALLBACK_FONTS if name in installed)]


def _pyplot() -> Any:
    try:
        importlib.import_module("matplotlib")
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":  # it is there, and lacks something itself
            raise
        message = "plot needs matplotlib: pip install 'attention-service[plot]'"
        raise ImportError(message, name="matplotlib") from error
    return importlib.import_module("matplotlib.pyplot")
