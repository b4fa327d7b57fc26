"""Attention weights as a picture: rows are queries, columns are keys, darker is more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from attention_wire.maps import printable, shade_limit
from attention_wire.tensors import Array

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

_WHITE, _DARK = (255, 255, 255), (8, 29, 88)
_FONT_PIXELS = 13
_CELL_PIXELS = 18
_GAP_PIXELS = 6
_LABEL = 24
# Of the machine; Pillow's own font, which is always there, has hardly more than ASCII.
_FONTS = "DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc"
# Past this many rows a picture with labels would have more pixels than viewers take.
MOST_LABELLED = 512
_MOST_PIXELS = 8192
# A code point that no font has a glyph for.
_NO_GLYPH = "\U0010fffe"


def heat_map(labels: Sequence[str], weights: Array, *, special: Array, caption: str) -> bytes:
    r"""Draw one matrix of attention weights as a PNG.

    Shades are relative to the largest weight on a word, as in
    :func:`attention_wire.maps.attention_map`; what is above it is as dark.

    Args:
        labels: U rows and columns; what no font here can draw is written as ``\u6ce8``.
        weights: float64 [U, U]. Cells that are no numbers stay white.
        special: bool [U], true for each key that is no word.
        caption: what is drawn, for the first line.

    Returns:
        The bytes of a PNG of at most 256 colours. Of more than ``MOST_LABELLED`` rows the cells
        get smaller and the labels are left out, which the caption says.
    """
    limit = shade_limit(weights, ~special)
    faces = _faces()
    font = faces[0].font
    is_labelled = len(labels) <= MOST_LABELLED
    names = [_written(label, faces) for label in labels] if is_labelled else []
    caption = f"{caption}; rows: queries, columns: keys; darkest: {limit:.2g} or more"
    if not is_labelled:
        caption += f"; {len(labels)} rows, too many for labels"
    cell = _CELL_PIXELS if is_labelled else max(1, _MOST_PIXELS // len(labels))
    margin = max((_width(*name) for name in names), default=0) + 2 * _GAP_PIXELS
    head = 2 * _GAP_PIXELS + _FONT_PIXELS
    side = cell * len(labels)
    size = (
        max(margin + side + _GAP_PIXELS, _width(caption, font) + 2 * _GAP_PIXELS),
        head + margin + side + _GAP_PIXELS,
    )
    # Shades first and colours last: letters have soft edges, which are shades too.
    image = Image.new("L", size, 0)
    image.paste(_cells(weights, limit, cell), (margin, head + margin))
    draw = ImageDraw.Draw(image)
    draw.text((_GAP_PIXELS, _GAP_PIXELS), caption, fill=255, font=font)
    for index, (name, font) in enumerate(names):
        middle = cell * index + cell // 2
        left = margin - _GAP_PIXELS, head + margin + middle
        draw.text(left, name, fill=255, font=font, anchor="rm")
        label = Image.new("L", (margin, cell), 0)
        ImageDraw.Draw(label).text((_GAP_PIXELS, cell // 2), name, 255, font, anchor="lm")
        image.paste(label.transpose(Image.Transpose.ROTATE_90), (margin + cell * index, head))
    colored = Image.frombytes("P", image.size, image.tobytes())
    colored.putpalette([channel for shade in range(256) for channel in _color(shade)])
    file = BytesIO()
    colored.save(file, format="PNG")
    return file.getvalue()


def _color(shade: int) -> tuple[int, ...]:
    return tuple(
        round(light + (dark - light) * shade / 255)
        for light, dark in zip(_WHITE, _DARK, strict=True)
    )


def _cells(weights: Array, limit: float, cell: int) -> Image.Image:
    """The squares, each of one shade."""
    finite = np.where(np.isfinite(weights), weights, 0)
    part = np.clip(finite / limit, 0, 1) if limit else np.zeros(weights.shape)
    shades = np.rint(255 * part).astype(np.uint8)
    return Image.fromarray(shades.repeat(cell, 0).repeat(cell, 1))


# --- Labels ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Face:
    """A font, and what it draws of a character that it does not have."""

    font: Font
    missing: bytes

    @classmethod
    def of(cls, font: Font) -> _Face:
        return cls(font, bytes(font.getmask(_NO_GLYPH)))

    def has(self, char: str) -> bool:
        return char == " " or bytes(self.font.getmask(char)) != self.missing


def _faces() -> list[_Face]:
    """The fonts that this machine has, Pillow's own the last."""
    found: list[_Face] = []
    for name in _FONTS:
        try:
            found.append(_Face.of(ImageFont.truetype(name, _FONT_PIXELS)))
        except OSError:  # there is none of that name
            continue
    return [*found, _Face.of(ImageFont.load_default(_FONT_PIXELS))]


def _written(label: str, faces: Sequence[_Face]) -> tuple[str, Font]:
    """A label of a bounded length, and the first font that can write all of it."""
    label = printable(label)
    label = label if len(label) <= _LABEL else label[: _LABEL - 1] + "…"
    for face in faces:
        if all(map(face.has, label)):
            return label, face.font
    first = faces[0]
    escaped = (char if first.has(char) else f"\\u{ord(char):04x}" for char in label)
    return "".join(escaped), first.font


def _width(text: str, font: Font) -> int:
    return math.ceil(font.getlength(text))
