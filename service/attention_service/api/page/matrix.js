// A matrix as a heat map on a canvas: zoom, pan, and the exact value of each cell.

import { hint, makeStage } from "./matrix_stage.js";
import { cellsImage, paintCells, paintCursor, paletteOf } from "./matrix_paint.js";
import { Frame } from "./matrix_frame.js";
import { listen } from "./matrix_input.js";
import { matrixCsv, matrixSvg } from "./matrix_files.js";
import { scaleOf } from "./colours.js";
import { exact } from "./numbers.js";
import { shownTheme } from "./theme.js";
import { isolated } from "./units.js";

/**
 * @typedef {object} Shown
 * @property {string[]} rows names, one for each row.
 * @property {string[]} columns names.
 * @property {Float32Array} values row-major, rows × columns.
 * @property {string} title what it is, for people who do not see it.
 * @property {Float32Array} [floors] of each row: smaller values are drawn as 0, and read as they are.
 */

/**
 * A cell that is read. As text it is a sentence, names and exact value.
 *
 * @typedef {object} Read
 * @property {number} row
 * @property {number} column
 * @property {string} rowName
 * @property {string} columnName
 * @property {number} value exact.
 */

/**
 * Makes a heat map in a container.
 *
 * @param {HTMLElement} container emptied by `destroy`.
 * @param {object} [options]
 * @param {(read: Read|null) => void} [options.onRead] is told of the cell under pointer or cursor.
 * @returns {{show: (shown: Shown) => void, svg: () => string, png: () => Promise<Blob>,
 *   csv: () => string, repaint: () => void, destroy: () => void, canvas: HTMLCanvasElement}}
 */
export function createMatrix(container, { onRead = () => {} } = {}) {
  const stage = makeStage(container);
  const frame = new Frame();
  const own = { shown: null, scale: null, image: null, cursor: null, pending: 0 };

  /** All of it: at a new matrix, size, zoom or theme; never while the pointer only moves. */
  function paint() {
    own.pending = 0;
    if (!own.shown) return;
    frame.fit(stage.width(), own.shown);
    stage.resize(frame);
    paintCells(stage.context(), { ...own, frame, palette: paletteOf(stage.canvas) });
    paintOver();
    stage.canvas.dataset.zoom = frame.zoom.toFixed(2);
    for (const [name, value] of Object.entries(frame.place())) stage.canvas.dataset[name] = value;
  }

  function paintOver() {
    paintCursor(stage.overContext(), frame, own.cursor, paletteOf(stage.canvas));
  }

  function paintSoon() {
    own.pending ||= requestAnimationFrame(paint);
  }

  function read(cell) {
    const isSame = cell?.row === own.cursor?.row && cell?.column === own.cursor?.column;
    if (isSame || !own.shown) return;
    own.cursor = cell;
    paintOver();
    if (cell === null) {
      onRead(null);
      return;
    }
    const { rows, columns, values } = own.shown;
    const { row, column } = cell;
    const value = values[row * columns.length + column];
    onRead(reading({ row, column, rowName: rows[row], columnName: columns[column], value }));
  }

  function redraw() {
    if (!own.shown) return;
    own.image = cellsImage(own.shown, own.scale, shownTheme());
    paint();
    stage.legend(own.scale, shownTheme());
  }

  const input = listen(stage, frame, { read, paintSoon, cursor: () => own.cursor });
  const resized = new ResizeObserver(paintSoon);
  resized.observe(container);
  const themed = new MutationObserver(redraw);
  themed.observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });

  return {
    canvas: stage.canvas,
    show(shown) {
      const { rows, columns, values, title } = shown;
      if (values.length !== rows.length * columns.length) {
        throw new Error(`${values.length} values are no ${rows.length} × ${columns.length} matrix.`);
      }
      const isOther = frame.rows !== rows.length || frame.columns !== columns.length;
      Object.assign(own, { shown, scale: scaleOf(values), cursor: isOther ? null : own.cursor });
      if (isOther) frame.reset(rows.length, columns.length);
      stage.describe(`${title}. ${rows.length} rows, ${columns.length} columns. ${hint}`);
      Object.assign(stage.canvas.dataset, { rows: rows.length, columns: columns.length });
      redraw();
      const cell = own.cursor;
      own.cursor = null;
      if (cell) read(cell);
    },
    repaint: redraw,
    svg: () => matrixSvg(own, shownTheme(), paletteOf(stage.canvas)),
    png: () => stage.picture(),
    csv: () => matrixCsv(own.shown),
    destroy() {
      cancelAnimationFrame(own.pending);
      resized.disconnect();
      themed.disconnect();
      input.end();
      container.replaceChildren();
    },
  };
}

/** @returns {Read} */
function reading(read) {
  const [from, to] = [isolated(read.rowName), isolated(read.columnName)];
  const text = `${from} (row ${read.row}) → ${to} (column ${read.column}): ${exact(read.value)}`;
  return { ...read, toString: () => text };
}
