// Where the cells of a matrix lie on its canvas, in CSS pixels, at a zoom.

const LARGEST_CELL = 44;
const LARGEST_HEIGHT = 760;
const MAX_ZOOM = 64;
/** Least pixels from one name to the next. */
export const NAME_STEP = 13;
const NARROW = 520;

/** Measures of the names, with the font that they are drawn in. */
export const FONT = "12px system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif";
const measuring = document.createElement("canvas").getContext("2d");

/** @param {string} text @returns {number} its width in pixels. */
export function widthOf(text) {
  measuring.font = FONT;
  return measuring.measureText(text).width;
}

/** The part of a matrix that is seen, and where. */
export class Frame {
  constructor() {
    this.reset(1, 1);
    Object.assign(this, { left: 0, top: 0, width: 1, height: 1, cellWidth: 1, cellHeight: 1 });
  }

  /** @param {number} rows @param {number} columns */
  reset(rows, columns) {
    Object.assign(this, { rows, columns, zoom: 1, x: 0, y: 0 }); // x, y: first cell that is seen
  }

  /**
   * Finds the sizes for a width.
   *
   * @param {number} available pixels.
   * @param {{rows: string[], columns: string[]}} names
   */
  fit(available, { rows, columns }) {
    const most = available < NARROW ? 76 : 130;
    this.left = Math.ceil(Math.min(most, longest(rows)) + 12);
    this.top = Math.ceil(Math.min(most, longest(columns)) + 12);
    const wide = Math.min(LARGEST_CELL, (available - this.left - 8) / this.columns);
    const high = Math.min(LARGEST_CELL, LARGEST_HEIGHT / this.rows);
    // Cells are square, but for matrices so long that they would be a line.
    const side = Math.min(wide, high);
    const isLong = side * Math.min(this.rows, this.columns) < 48;
    this.width = Math.max(1, (isLong ? wide : side) * this.columns);
    this.height = Math.max(1, (isLong ? high : side) * this.rows);
    this.#measure();
  }

  /** Cell at a place of the canvas, or null. */
  cellAt(left, top) {
    const column = Math.floor((left - this.left) / this.cellWidth + this.x);
    const row = Math.floor((top - this.top) / this.cellHeight + this.y);
    const isInside =
      left >= this.left && left < this.left + this.width && top >= this.top && top < this.top + this.height;
    return isInside && row < this.rows && column < this.columns ? { row, column } : null;
  }

  /** @param {number} factor @param {number} left @param {number} top what stays where it is. */
  zoomBy(factor, left = this.left + this.width / 2, top = this.top + this.height / 2) {
    const across = (left - this.left) / this.width;
    const down = (top - this.top) / this.height;
    const column = this.x + (across * this.columns) / this.zoom;
    const row = this.y + (down * this.rows) / this.zoom;
    this.zoom = Math.min(MAX_ZOOM, Math.max(1, this.zoom * factor));
    if (this.zoom < 1.01) this.zoom = 1;
    this.#moveTo(column - (across * this.columns) / this.zoom, row - (down * this.rows) / this.zoom);
    this.#measure();
  }

  /** Moves what is seen by pixels. */
  panBy(left, top) {
    this.#moveTo(this.x - left / this.cellWidth, this.y - top / this.cellHeight);
  }

  /** Moves as little as brings a cell into sight. */
  reveal({ row, column }) {
    const columns = this.columns / this.zoom;
    const rows = this.rows / this.zoom;
    const x = Math.max(column + 1 - columns, Math.min(this.x, column));
    const y = Math.max(row + 1 - rows, Math.min(this.y, row));
    this.#moveTo(x, y);
  }

  /** Where the first cell lies and how large cells are, as attributes for whoever reads pixels. */
  place() {
    return {
      left: (this.left - this.x * this.cellWidth).toFixed(3),
      top: (this.top - this.y * this.cellHeight).toFixed(3),
      cellWidth: this.cellWidth.toFixed(4),
      cellHeight: this.cellHeight.toFixed(4),
    };
  }

  #moveTo(x, y) {
    this.x = Math.max(0, Math.min(x, this.columns - this.columns / this.zoom));
    this.y = Math.max(0, Math.min(y, this.rows - this.rows / this.zoom));
  }

  #measure() {
    this.cellWidth = (this.width / this.columns) * this.zoom;
    this.cellHeight = (this.height / this.rows) * this.zoom;
  }
}

/** Width of the longest name; of many, by a sample and the number of characters. */
function longest(names) {
  const byLength = [...names].sort((a, b) => b.length - a.length).slice(0, 24);
  return Math.max(0, ...byLength.map(widthOf));
}
