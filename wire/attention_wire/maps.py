"""Attention maps as text: rows are queries, columns are keys, shades are weights.

Plain characters, no colours, so that a map can go through a pipe or into a file. Each cell
is two columns wide, which is about as wide as a line of a terminal is high, and as wide as
the widest character, so that labels written downwards stay above their cells.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from attention_wire.tensors import Array

WIDTH = 100
"""Columns that a map takes at most, unless told otherwise."""

_CELL = 2
_SHADES = "  ", "··", "░░", "▒▒", "▓▓", "██"
_NOT_A_NUMBER = "? "
# What a weight must reach for each shade, as a part of the largest weight of the map. Few
# weights of a trained model are large, so the steps are closer at the faint end.
_STEPS = np.array([0.08, 0.2, 0.4, 0.6, 0.8])
_LEAST_FULL = 0.2
_ROW_LABEL = 14
_COLUMN_LABEL = 10
_NOTE_LABEL = 12
_LEAST_NOTED = 0.005


def attention_map(
    tokens: Sequence[str],
    weights: npt.ArrayLike,
    *,
    key_tokens: Sequence[str] | None = None,
    special: npt.ArrayLike | None = None,
    caption: str | None = None,
    width: int = WIDTH,
) -> str:
    """Draw one matrix of attention weights with block characters.

    At the end of a row stands the key that its query attends to most, with the weight.

    Args:
        tokens: labels of the rows, the queries: L strings.
        weights: the weights, [L, S], of any float dtype.
        key_tokens: labels of the columns, the keys: S strings; the row labels by default.
        special: true for each key that is no word, S booleans. Such keys often draw most of
            the attention, so they set neither the shades nor the notes; they are still drawn.
        caption: what is drawn, for the first line.
        width: columns of text to stay within. Queries and keys that find no room are left
            out, and a last line says so.

    Returns:
        Several lines of text without a final newline.

    Raises:
        ValueError: the weights are no matrix, or have other sizes than there are labels.

    Example:
        >>> print(attention_map(["the", "cat", "sat"], [[0.9, 0.1, 0], [0.5, 0.5, 0], [0, 0, 1]]))
        rows: queries, columns: keys
            t c s
            h a a
            e t t
        the ██··   → the 0.90
        cat ▒▒▒▒   → the 0.50
        sat     ██ → sat 1.00
        ·· ≥ 0.08  ░░ ≥ 0.2  ▒▒ ≥ 0.4  ▓▓ ≥ 0.6  ██ ≥ 0.8
    """
    keys = tokens if key_tokens is None else key_tokens
    matrix = np.asarray(weights, np.float64)
    if matrix.shape != (len(tokens), len(keys)):
        raise ValueError(
            f"weights must be a matrix of one row for each of the {len(tokens)} queries and one "
            f"column for each of the {len(keys)} keys; got the shape {list(matrix.shape)}"
        )
    margin = max((_width(label) for label in _row_labels(tokens)), default=0)
    room = max(1, (width - margin - 1) // _CELL)
    shown_rows, shown_keys = min(len(tokens), room), min(len(keys), room)
    words = ~np.zeros(len(keys), bool) if special is None else ~np.asarray(special, bool)
    notes = _notes(matrix, keys, words)[:shown_rows]
    notes_fit = margin + 1 + _CELL * shown_keys + max(map(_width, notes), default=0) <= width

    lines = [f"{caption}; rows: queries, columns: keys" if caption else _AXES]
    lines += [" " * (margin + 1) + line for line in _column_labels(keys[:shown_keys])]
    full = shade_limit(matrix, words)
    cells = _cells(matrix, full)
    for row, label in enumerate(_row_labels(tokens)[:shown_rows]):
        note = notes[row] if notes_fit else ""
        lines.append(_pad(label, margin) + " " + "".join(cells[row][:shown_keys]) + note)
    lines.append(_legend(full))
    if (shown_rows, shown_keys) < (len(tokens), len(keys)):
        lines.append(
            f"(the first {shown_rows} of {len(tokens)} queries and the first {shown_keys} of "
            f"{len(keys)} keys; shades are relative to the whole)"
        )
    return "\n".join(line.rstrip() for line in lines)


_AXES = "rows: queries, columns: keys"


def shade_limit(matrix: Array, words: Array) -> float:
    """The weight that the shades are relative to: the largest on a word.

    Where words get next to nothing it is a part of the largest of all, so that what is
    faint stays faint.

    Args:
        matrix: weights, [L, S]; what is not finite counts as 0.
        words: bool [S], true for each key that is a word rather than a special token.
    """
    finite = np.where(np.isfinite(matrix), matrix, 0)
    of_words = finite[:, words].max(initial=0)
    return float(max(of_words, finite.max(initial=0) * _LEAST_FULL))


def _cells(matrix: Array, full: float) -> list[list[str]]:
    if full == 0:
        levels = np.zeros(matrix.shape, int)
    else:
        levels = np.searchsorted(_STEPS, matrix / full, side="right")
    cells = [[_SHADES[level] for level in row] for row in levels]
    for row, column in np.argwhere(~np.isfinite(matrix)):
        cells[row][column] = _NOT_A_NUMBER
    return cells


def _legend(full: float) -> str:
    if full == 0:
        return "(no weight above 0)"
    steps = zip(_SHADES[1:], _STEPS * full, strict=True)
    return "  ".join(f"{shade} ≥ {step:.2g}" for shade, step in steps)


def _notes(matrix: Array, keys: Sequence[str], words: Array) -> list[str]:
    """For each row, the word with the largest weight; nothing where all are tiny."""
    notes = []
    for row in np.where(words & np.isfinite(matrix), matrix, 0):
        best = int(np.argmax(row)) if row.size else 0
        if row.size and row[best] >= _LEAST_NOTED:
            notes.append(f" → {_shortened(printable(keys[best]), _NOTE_LABEL)} {row[best]:.2f}")
        else:
            notes.append("")
    return notes


def _row_labels(tokens: Sequence[str]) -> list[str]:
    return [_shortened(printable(token), _ROW_LABEL) for token in tokens]


def _column_labels(tokens: Sequence[str]) -> list[str]:
    """Labels written downwards, their last characters next to the map."""
    columns = [_clusters(_shortened(printable(token), _COLUMN_LABEL)) for token in tokens]
    height = max(map(len, columns), default=0)
    padded = [[""] * (height - len(column)) + column for column in columns]
    return ["".join(_pad(column[line], _CELL) for column in padded) for line in range(height)]


# --- Characters and their widths -------------------------------------------------------


def printable(label: str) -> str:
    """The label without what would move the cursor, turn the line around or join letters."""
    return "".join(
        "" if unicodedata.category(char) == "Cf"
        else "␣" if char.isspace()
        else "�" if unicodedata.category(char) in {"Cc", "Cs"}
        else char
        for char in label
    )  # fmt: skip


def _char_width(char: str) -> int:
    if unicodedata.category(char) in {"Mn", "Me"}:
        return 0
    return 2 if unicodedata.east_asian_width(char) in {"W", "F"} else 1


def _width(text: str) -> int:
    return sum(map(_char_width, text))


def _clusters(text: str) -> list[str]:
    """The characters of a text, each with the marks that stand on it."""
    clusters: list[str] = []
    for char in text:
        if clusters and _char_width(char) == 0:
            clusters[-1] += char
        else:
            clusters.append(char)
    return clusters


def _shortened(text: str, width: int) -> str:
    if _width(text) <= width:
        return text
    kept, room = "", width - 1
    for cluster in _clusters(text):
        room -= _width(cluster)
        if room < 0:
            break
        kept += cluster
    return kept + "…"


def _pad(text: str, width: int) -> str:
    return text + " " * (width - _width(text))
