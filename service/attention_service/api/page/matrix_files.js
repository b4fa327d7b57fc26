// A matrix as files: SVG to print it, CSV to compute with it.

import { css, NOT_A_NUMBER, ramp } from "./colours.js";
import { makeSvg } from "./dom.js";
import { widthOf } from "./matrix_frame.js";
import { exact } from "./numbers.js";
import { isolated } from "./units.js";

const CELL = 18;
const FONT_FAMILY = "system-ui, 'Noto Sans', 'DejaVu Sans', sans-serif";
/** Most cells that are drawn as a rectangle each; more are one picture in the drawing. */
const MOST_RECTANGLES = 128 * 128;

/**
 * The whole matrix, whatever part is seen.
 *
 * @param {{shown: import("./matrix.js").Shown, scale: object, image: HTMLCanvasElement}} own
 * @param {"light"|"dark"} theme
 * @param {{ground: string, ink: string}} palette
 * @returns {string} a whole SVG document.
 */
export function matrixSvg({ shown, scale, image }, theme, palette) {
  const { rows, columns, values, title } = shown;
  const left = Math.max(0, ...rows.map(widthOf)) + 14;
  const top = Math.max(0, ...columns.map(widthOf)) + 14;
  const [width, height] = [left + CELL * columns.length + 8, top + CELL * rows.length + 8];
  const root = makeSvg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img" });
  const words = makeSvg("title", {}, title);
  const ground = makeSvg("rect", { width, height, fill: palette.ground });
  const names = makeSvg("g", { fill: palette.ink, "font-size": 12, "font-family": FONT_FAMILY });
  rows.forEach((name, row) => {
    const place = { x: left - 6, y: top + (row + 0.5) * CELL };
    const attributes = { ...place, "text-anchor": "end", "dominant-baseline": "central" };
    names.append(makeSvg("text", attributes, isolated(name)));
  });
  columns.forEach((name, column) => {
    const transform = `translate(${left + (column + 0.5) * CELL} ${top - 6}) rotate(-90)`;
    names.append(makeSvg("text", { transform, "dominant-baseline": "central" }, isolated(name)));
  });
  const isMany = values.length > MOST_RECTANGLES;
  const cells = isMany ? picture(image, left, top) : rectangles(shown, scale, theme, left, top);
  root.append(words, ground, cells, names);
  return svgDocument(root);
}

/** A drawing as a document of its own. @param {SVGElement} root @returns {string} */
export function svgDocument(root) {
  return `<?xml version="1.0" encoding="UTF-8"?>\n${new XMLSerializer().serializeToString(root)}\n`;
}

function rectangles({ columns, values, floors }, scale, theme, left, top) {
  const table = ramp(theme);
  const cells = makeSvg("g");
  values.forEach((value, index) => {
    const column = index % columns.length;
    const row = (index - column) / columns.length;
    const share = scale.share(floors && value < floors[row] ? 0 : value);
    cells.append(
      makeSvg("rect", {
        x: left + column * CELL,
        y: top + row * CELL,
        width: CELL - 1,
        height: CELL - 1,
        fill: Number.isFinite(value) ? css(table, share) : `rgb(${NOT_A_NUMBER.join(", ")})`,
        "data-row": row,
        "data-column": column,
        "data-value": exact(value),
      }),
    );
  });
  return cells;
}

function picture(image, x, y) {
  const [width, height] = [image.width * CELL, image.height * CELL];
  const href = image.toDataURL("image/png");
  return makeSvg("image", { x, y, width, height, href, "image-rendering": "pixelated" });
}

/**
 * The matrix with its names, as RFC 4180 has it.
 *
 * @param {import("./matrix.js").Shown} shown
 * @returns {string} the first line names the columns, the first field of each other line its row.
 */
export function matrixCsv({ rows, columns, values }) {
  const lines = rows.map((name, row) => {
    const numbers = values.subarray(row * columns.length, (row + 1) * columns.length);
    return [quoted(name), ...Array.from(numbers, exact)].join(",");
  });
  return [["", ...columns].map(quoted).join(","), ...lines, ""].join("\r\n");
}

/** @param {string} text @returns {string} a CSV field. */
export function quoted(text) {
  return `"${text.replaceAll('"', '""')}"`;
}
