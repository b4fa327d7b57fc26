// Drawing of a heat map: the cells once into an image of one pixel each, which is then only copied.

import { NOT_A_NUMBER, ramp, stepOf } from "./colours.js";
import { FONT, NAME_STEP, widthOf } from "./matrix_frame.js";
import { isolated } from "./units.js";

/**
 * The image of all cells.
 *
 * @param {import("./matrix.js").Shown} shown
 * @param {{share: (value: number) => number}} scale
 * @param {"light"|"dark"} theme
 * @returns {HTMLCanvasElement} columns × rows pixels.
 */
export function cellsImage({ rows, columns, values, floors }, scale, theme) {
  const table = ramp(theme);
  const pixels = new ImageData(Math.max(1, columns.length), Math.max(1, rows.length));
  const { data } = pixels;
  for (let cell = 0; cell < values.length; cell += 1) {
    const value = values[cell];
    const isLeftOut = floors && value < floors[Math.floor(cell / columns.length)];
    const at = 3 * stepOf(scale.share(isLeftOut ? 0 : value));
    const isNumber = Number.isFinite(value);
    for (let part = 0; part < 3; part += 1) {
      data[4 * cell + part] = isNumber ? table[at + part] : NOT_A_NUMBER[part];
    }
    data[4 * cell + 3] = 255;
  }
  const image = document.createElement("canvas");
  image.width = pixels.width;
  image.height = pixels.height;
  image.getContext("2d").putImageData(pixels, 0, 0);
  return image;
}

/** The page's colours, as the style sheet has them at an element. */
export function paletteOf(element) {
  const style = getComputedStyle(element);
  const colour = (name) => style.getPropertyValue(name).trim();
  return {
    ground: colour("--surface"),
    ink: colour("--ink"),
    soft: colour("--ink-soft"),
    line: colour("--line"),
    accent: colour("--accent"),
  };
}

/** Draws cells and names. */
export function paintCells(context, { shown, image, frame, palette }) {
  const { left, top, width, height } = frame;
  context.fillStyle = palette.ground;
  context.fillRect(0, 0, context.canvas.width, context.canvas.height);
  const across = frame.columns / frame.zoom;
  const down = frame.rows / frame.zoom;
  context.imageSmoothingEnabled = frame.cellWidth < 1;
  context.drawImage(image, frame.x, frame.y, across, down, left, top, width, height);
  if (frame.cellWidth >= 12 && frame.cellHeight >= 12) gaps(context, frame, palette);
  context.strokeStyle = palette.line;
  context.lineWidth = 1;
  context.strokeRect(left - 0.5, top - 0.5, width + 1, height + 1);
  context.font = FONT;
  context.fillStyle = palette.soft;
  context.textBaseline = "middle";
  context.direction = "ltr";
  rowNames(context, shown.rows, frame);
  columnNames(context, shown.columns, frame);
}

/** Fine lines between cells that are large enough to be told apart. */
function gaps(context, frame, palette) {
  const { left, top, width, height } = frame;
  context.fillStyle = palette.ground;
  for (let column = Math.ceil(frame.x); column < frame.x + frame.columns / frame.zoom; column += 1) {
    if (column === 0) continue;
    context.fillRect(left + (column - frame.x) * frame.cellWidth - 0.5, top, 1, height);
  }
  for (let row = Math.ceil(frame.y); row < frame.y + frame.rows / frame.zoom; row += 1) {
    if (row === 0) continue;
    context.fillRect(left, top + (row - frame.y) * frame.cellHeight - 0.5, width, 1);
  }
}

function rowNames(context, names, frame) {
  context.textAlign = "right";
  const step = Math.max(1, Math.ceil(NAME_STEP / frame.cellHeight));
  const last = Math.min(frame.rows, frame.y + frame.rows / frame.zoom);
  for (let row = step * Math.ceil(Math.floor(frame.y) / step); row < last; row += step) {
    const middle = middleOf(frame.top, frame.height, row - frame.y, frame.cellHeight);
    context.fillText(shortened(names[row], frame.left - 12), frame.left - 6, middle);
  }
}

function columnNames(context, names, frame) {
  context.textAlign = "left";
  const step = Math.max(1, Math.ceil(NAME_STEP / frame.cellWidth));
  const last = Math.min(frame.columns, frame.x + frame.columns / frame.zoom);
  for (let column = step * Math.ceil(Math.floor(frame.x) / step); column < last; column += step) {
    const middle = middleOf(frame.left, frame.width, column - frame.x, frame.cellWidth);
    context.save();
    context.translate(middle, frame.top - 6);
    context.rotate(-Math.PI / 2);
    context.fillText(shortened(names[column], frame.top - 12), 0, 0);
    context.restore();
  }
}

/**
 * Where the middle of a name lies: in the middle of its cell, or, of a cell that is seen in part, in
 * the part that is seen. It never leaves its cell, so no two lie over each other.
 */
function middleOf(start, size, index, cell) {
  const half = Math.min(NAME_STEP, cell) / 2;
  const within = (low, high, place) => Math.max(low, Math.min(high, place));
  const seen = within(half, size - half, (index + 0.5) * cell);
  return start + within(index * cell + half, (index + 1) * cell - half, seen);
}

/** A name that fits, with an ellipsis where it was cut. */
export function shortened(name, width) {
  if (widthOf(name) <= width) return isolated(name);
  const characters = Array.from(name);
  while (characters.length > 1 && widthOf(`${characters.join("")}…`) > width) characters.pop();
  return isolated(`${characters.join("")}…`);
}

/** Draws what lies over the cells: the row and column that are read, and the cell. */
export function paintCursor(context, frame, cell, palette) {
  context.clearRect(0, 0, context.canvas.width, context.canvas.height);
  if (!cell) return;
  const { left, top, width, height } = frame;
  const x = left + (cell.column - frame.x) * frame.cellWidth;
  const y = top + (cell.row - frame.y) * frame.cellHeight;
  context.save();
  context.beginPath();
  context.rect(left - 2, top - 2, width + 4, height + 4);
  context.clip();
  context.fillStyle = palette.accent;
  context.globalAlpha = 0.55;
  for (const edge of [y - 0.5, y + frame.cellHeight - 0.5]) context.fillRect(left, edge, width, 1);
  for (const edge of [x - 0.5, x + frame.cellWidth - 0.5]) context.fillRect(edge, top, 1, height);
  context.globalAlpha = 1;
  context.strokeStyle = palette.accent;
  context.lineWidth = 2;
  context.strokeRect(x, y, frame.cellWidth, frame.cellHeight);
  context.restore();
}
