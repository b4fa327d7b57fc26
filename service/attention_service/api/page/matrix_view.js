// The matrix view: one head, or several as one, as a heat map.

import { createMatrix } from "./matrix.js";
import { exact } from "./numbers.js";
import { matrixRequest, rolloutRequest } from "./requests.js";
import { lastOf, titleOf } from "./titles.js";
import { ALL } from "./state.js";
import { named } from "./units.js";

export const lede = (unit) =>
  `Each row is a ${unit} that attends, each column one that it attends to; a row sums to 1. ` +
  "Point at a cell for its exact weight.";

export const rolloutLede = (unit) =>
  "Rollout multiplies the layers up to the chosen one, residual connections included: " +
  `how much of each first ${unit} (columns) has come to each ${unit} (rows) by then.`;

/**
 * @param {HTMLElement} stage
 * @param {{read: (words: string) => void}} page
 * @returns {object} a view, as views.js has them.
 */
export function createView(stage, page) {
  return heatMap(stage, page, {
    load: (source, state) => source.matrix(state),
    request: matrixRequest,
    title: titleOf,
  });
}

/** As `createView`, of the rollout up to a layer. */
export function createRollout(stage, page) {
  return heatMap(stage, page, {
    load: (source, state) => source.rollout(state, lastOf(state, source)),
    request: (state, source) => rolloutRequest(state, lastOf(state, source)),
    title: (state, source) =>
      `Attention rollout of ${source.info.name} up to layer ${lastOf(state, source)}`,
  });
}

function heatMap(stage, page, { load, request, title }) {
  let units = [];
  const matrix = createMatrix(stage, { onRead: (read) => page.read(read ? sentence(read) : "") });
  matrix.canvas.dataset.testid = "matrix";

  function sentence({ row, column, value }) {
    return `${named(units[row], row)} → ${named(units[column], column)}: ${exact(value)}`;
  }

  return {
    files: ["png", "svg", "csv", "json"],
    load,
    request,
    show(values, source, state) {
      ({ units } = source);
      const names = units.map(({ label }) => label);
      const shown = { rows: names, columns: names, values, title: title(state, source) };
      matrix.show({ ...shown, floors: floorsOf(values, units.length, state) });
    },
    svg: () => matrix.svg(),
    png: () => matrix.png(),
    csv: () => matrix.csv(),
    destroy: () => matrix.destroy(),
  };
}

/** The least weight of each row that the sliders leave. @returns {Float32Array} [U] */
function floorsOf(values, count, { topk, threshold }) {
  return Float32Array.from({ length: count }, (_, row) => {
    if (topk >= Math.min(ALL, count)) return threshold;
    const falling = values.slice(row * count, (row + 1) * count).sort().reverse();
    return Math.max(threshold, falling[topk - 1]);
  });
}
