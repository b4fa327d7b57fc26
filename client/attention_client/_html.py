"""Weights as HTML for notebooks: a head's lines and its matrix, without any script.

A fragment holds all that it shows and loads nothing, so that it also works offline, in an export
and where a notebook runs no scripts: panels are chosen by radio buttons, and what the mouse
touches is told by style sheets. Colours are translucent over whatever the notebook's theme has
behind them, and letters are in the theme's own colour. A fragment is well-formed XML too.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from attention_wire.maps import printable, shade_limit
from attention_wire.tensors import Array

MOST_BYTES = 140_000
"""What the panels of a fragment may take; notebooks keep them all."""
MOST_UNITS = 48
"""Rows and columns of a matrix that are drawn."""
MOST_PANELS = 13
MOST_KEYS = 8
"""Of the k largest weights of a row, those that are drawn."""

_LINES = 4
_LABEL = 14
_LINE_HEIGHT = 16
_LINE_WIDTH = 120
_TEXT_WIDTH = 110
_STYLE = """
.attention-view{font:12px/16px sans-serif}
.attention-view code{white-space:pre-wrap}
.attention-view form{display:flex;flex-wrap:wrap;gap:2px;margin:4px 0}
.attention-view input{position:absolute;opacity:0}
.attention-view label{padding:1px 6px;border:1px solid rgba(128,128,128,.4);border-radius:3px}
.attention-view label:has(:checked){background:rgba(37,99,235,.35)}
.attention-view label:has(:focus-visible){outline:2px solid currentColor}
.attention-view section{order:1;width:100%}
@supports selector(:has(a)){.attention-view label:not(:has(:checked))+section{display:none}}
.attention-view .both{display:flex;flex-wrap:wrap;gap:16px;align-items:flex-end}
.attention-view svg{flex:none;overflow:hidden}
.attention-view text{fill:currentColor;unicode-bidi:isolate}
.attention-view path{stroke:rgb(37,99,235);stroke-width:2}
.attention-view svg:hover .query:not(:hover){opacity:.1}
.attention-view .query:hover text{font-weight:bold}
.attention-view .matrix{overflow:hidden;padding:4px 5em 0 0}
.attention-view .row,.attention-view .keys{display:flex;align-items:flex-end}
.attention-view bdi{white-space:nowrap}
.attention-view .row>bdi,.attention-view .corner{width:8em;padding-right:4px;text-align:right}
.attention-view .row>bdi,.attention-view .corner{flex:none;overflow:hidden}
.attention-view .row:hover{background:rgba(128,128,128,.25)}
.attention-view .keys bdi{writing-mode:vertical-rl;transform:rotate(180deg);width:16px}
.attention-view .keys bdi{flex:none;max-height:9em}
.attention-view i{flex:none;position:relative;width:16px;height:16px}
.attention-view i{background:rgba(37,99,235,var(--w,0))}
.attention-view i{box-shadow:inset 0 0 0 .5px rgba(128,128,128,.3)}
.attention-view i:hover{outline:2px solid currentColor}
.attention-view i:hover::before{content:"";position:absolute;left:0;width:100%}
.attention-view i:hover::before{top:-99em;height:198em;background:rgba(128,128,128,.25)}
.attention-view i:hover::after{content:attr(data-weight);position:absolute;left:20px;z-index:1}
.attention-view i:hover::after{padding:0 4px;background:#fff;color:#000;font-style:normal}
.attention-view .key{margin-right:2px;padding:0 4px;background:rgba(37,99,235,var(--w))}
"""


@dataclass(frozen=True, slots=True)
class Panel:
    """One head, or what stands for several.

    Attributes:
        caption: what is shown, as plain text.
        body: HTML.
    """

    caption: str
    body: str

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        return len(self.body.encode())


def fragment(
    summary: str,
    choices: Iterable[tuple[str, Callable[[], Sequence[Panel]]]] = (),
    details: str = "",
) -> str:
    """A result as HTML.

    Args:
        summary: the result in one line, as plain text.
        choices: makers of panels to choose among, the most detailed first, each after a line
            of plain text to say with them; those are taken that are the first to fit into
            ``MOST_BYTES``, or the last.
        details: HTML for the end.
    """
    shown = ""
    for note, make in choices:
        panels = make()
        shown = _paragraph(note) + _chosen_by_buttons(panels)
        if sum(panel.size for panel in panels) <= MOST_BYTES:
            break
    return (
        f'<div class="attention-view"><style>{_STYLE}</style>'
        f"<code>{_escaped(summary)}</code>{shown}{details}</div>"
    )


def _paragraph(line: str) -> str:
    return f"<p>{_escaped(line)}</p>" if line else ""


def lines(summary: str, told: Iterable[str]) -> str:
    """Lines of plain text as HTML that is folded away under a first one."""
    body = "\n".join(map(_escaped, told))
    return f"<details><summary>{_escaped(summary)}</summary><pre>{body}</pre></details>"


def _chosen_by_buttons(panels: Sequence[Panel]) -> str:
    """Panels, of which the one is shown whose button is chosen."""
    parts = []
    for number, panel in enumerate(panels):
        caption = _escaped(panel.caption)
        if len(panels) > 1:
            chosen = ' checked="checked"' if number == 0 else ""
            button = f'<input type="radio" name="panel" value="{number}"{chosen}/>'
            parts.append(f"<label>{button}{caption}</label>")
        parts.append(f'<section aria-label="{caption}">{panel.body}</section>')
    # Buttons of one name belong together within a form, so that every result has its own.
    return f"<form>{''.join(parts)}</form>" if panels else ""


# --- One matrix ------------------------------------------------------------------------


def matrix(
    caption: str, weights: Array, rows: Sequence[str], keys: Sequence[str], words: Array
) -> Panel:
    """One matrix of weights: a head view, whose lines lead from queries to keys, and cells.

    Shades are relative to the largest weight on a word, as in
    :func:`attention_client.attention_map`. Weights stand as ``data-weight`` with four digits.

    Args:
        caption: what is shown.
        weights: float64 [L, S].
        rows: L labels.
        keys: S labels.
        words: bool [S], true for each key that is no special token.
    """
    limit = shade_limit(weights, words)
    drawn = weights[:MOST_UNITS, :MOST_UNITS]
    shades = _shades(drawn, limit)
    left = [_label(label) for label in rows[:MOST_UNITS]]
    top = [_label(label) for label in keys[:MOST_UNITS]]
    notes = f"rows: queries, columns: keys; full colour: {limit:.2g} or more; "
    notes += f"lines: the {_LINES} largest weights drawn of each query"
    if drawn.shape != weights.shape:
        notes += (
            f" (the first {len(left)} of {len(rows)} queries and the first {len(top)} of "
            f"{len(keys)} keys)"
        )
    return Panel(
        caption,
        f"<p>{_escaped(caption)}; {notes}</p>"
        f'<div class="both">{_head_view(drawn, shades, left, top)}'
        f"{_cells(drawn, shades, left, top)}</div>",
    )


def _shades(weights: Array, limit: float) -> Array:
    finite = np.where(np.isfinite(weights), weights, 0)
    shades: Array = np.clip(finite / limit, 0, 1) if limit else np.zeros(weights.shape)
    return shades


def _shade(part: float) -> str:
    """The attribute of a cell with that much of the colour: none where it would not be seen."""
    return f' style="--w:{part:.2g}"' if part >= 0.005 else ""


def _head_view(weights: Array, shades: Array, rows: Sequence[str], keys: Sequence[str]) -> str:
    """Queries on the left, keys on the right, and a line for each of the largest weights."""
    height = _LINE_HEIGHT * max(len(rows), len(keys))
    width = 2 * _TEXT_WIDTH + _LINE_WIDTH
    parts = [f'<svg width="{width}" height="{height}" viewBox="{-_TEXT_WIDTH} 0 {width} {height}">']
    for number, key in enumerate(keys):
        y = _LINE_HEIGHT * number + 12
        parts.append(f'<text class="key-label" x="{_LINE_WIDTH + 5}" y="{y}">{key}</text>')
    for number, (row, label) in enumerate(zip(weights, rows, strict=True)):
        middle = _LINE_HEIGHT * number + _LINE_HEIGHT // 2
        parts.append(
            f'<g class="query"><text x="-5" y="{middle + 4}" text-anchor="end">{label}</text>'
        )
        largest = np.argsort(-np.nan_to_num(row, nan=0), kind="stable")[:_LINES]
        for key_number in largest:
            if not row[key_number] > 0:  # the row sees fewer keys, or has no numbers
                continue
            end = _LINE_HEIGHT * int(key_number) + _LINE_HEIGHT // 2
            parts.append(
                f'<path d="M0 {middle}L{_LINE_WIDTH} {end}" data-key="{key_number}" '
                f'data-weight="{row[key_number]:.4g}" '
                f'stroke-opacity="{shades[number, key_number]:.2g}"/>'
            )
        parts.append("</g>")
    return "".join([*parts, "</svg>"])


def _cells(weights: Array, shades: Array, rows: Sequence[str], keys: Sequence[str]) -> str:
    """The matrix: a row of cells for each query, under the keys written upwards."""
    top = "".join(f"<bdi>{key}</bdi>" for key in keys)
    parts = [f'<div class="matrix"><div class="keys"><span class="corner"></span>{top}</div>']
    for label, row, shade in zip(rows, weights.tolist(), shades.tolist(), strict=True):
        cells = "".join(
            f'<i data-weight="{weight:.4g}"{_shade(part)}></i>'
            for weight, part in zip(row, shade, strict=True)
        )
        parts.append(f'<div class="row"><bdi>{label}</bdi>{cells}</div>')
    return "".join([*parts, "</div>"])


# --- The largest of each row -----------------------------------------------------------


def largest(
    caption: str,
    indices: Array,
    values: Array,
    rest: Array,
    rows: Sequence[str],
    keys: Sequence[str] | None,
) -> Panel:
    """The largest weights of each row, key by key.

    Args:
        caption: what is shown.
        indices: [L, k], the keys.
        values: [L, k], their weights.
        rest: [L], the weight of all others.
        rows: L labels.
        keys: a label for every key; their numbers where they have none.
    """
    count = min(values.shape[1], MOST_KEYS)
    drawn = np.asarray(values[:MOST_UNITS, :count], np.float64)
    # What is not drawn of a row's largest is with the rest.
    others = np.asarray(rest, np.float64) + np.asarray(values, np.float64)[:, count:].sum(axis=1)
    parts = []
    for number, row in enumerate(drawn.tolist()):
        cells = "".join(
            f'<span class="key" data-key="{key}" data-weight="{weight:.4g}" '
            f'style="--w:{min(max(weight, 0), 1):.2g}">'
            f"<bdi>{key if keys is None else _label(keys[key])}</bdi> {weight:.2g}</span>"
            for key, weight in zip(indices[number].tolist(), row, strict=False)
        )
        parts.append(
            f'<div class="row"><bdi>{_label(rows[number])}</bdi>{cells}'
            f'<span class="rest" data-weight="{others[number]:.4g}">others '
            f"{others[number]:.2g}</span></div>"
        )
    notes = f"the {count} largest weights of each row"
    if len(drawn) < len(rows):
        notes += f" (the first {len(drawn)} of {len(rows)} rows)"
    return Panel(caption, f"<p>{_escaped(caption)}; {notes}</p>{''.join(parts)}")


# --- Characters ------------------------------------------------------------------------


def _escaped(text: str) -> str:
    """A line of ours, which may have names in it that are not."""
    return html.escape(printable(text).replace("␣", " "))


def _label(label: str) -> str:
    """A token as HTML, of a bounded length."""
    shown = printable(label)
    shown = shown if len(shown) <= _LABEL else shown[: _LABEL - 1] + "…"
    return html.escape(shown)
