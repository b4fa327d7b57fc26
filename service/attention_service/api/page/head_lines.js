// The lines of the head view: which are drawn, and how.

import { makeSvg } from "./dom.js";
import { exact } from "./numbers.js";
import { ALL } from "./state.js";

/** Height of a token's row, in pixels; the style sheet has it as --row. */
export const ROW = 26;
/** Lines of a smaller weight could not be seen. */
const LEAST = 0.005;
/** Most lines that are drawn at once: the strongest. */
const MOST = 4000;

/**
 * @typedef {object} Line
 * @property {number} query row of the matrix.
 * @property {number} key column.
 * @property {number} weight
 */

/**
 * The lines of a matrix that the sliders leave.
 *
 * @param {Float32Array} values [U,U], row-major.
 * @param {number} count U.
 * @param {{topk: number, threshold: number}} sliders
 * @returns {Line[]} by rising weight, so that strong ones lie above.
 */
export function linesOf(values, count, { topk, threshold }) {
  const least = Math.max(LEAST, threshold);
  const lines = [];
  for (let query = 0; query < count; query += 1) {
    const row = [];
    for (let key = 0; key < count; key += 1) {
      const weight = values[query * count + key];
      if (weight >= least) row.push({ query, key, weight });
    }
    if (topk < ALL && row.length > topk) {
      row.sort((a, b) => b.weight - a.weight || a.key - b.key);
      row.length = topk;
    }
    lines.push(...row);
  }
  lines.sort((a, b) => a.weight - b.weight);
  return lines;
}

/** Of too many lines the strongest. @param {Line[]} lines by rising weight. @returns {Line[]} */
export function strongest(lines) {
  return lines.length > MOST ? lines.slice(-MOST) : lines;
}

/** Lines from held rows and to held columns. @param {Set<string>} active as in State's `held`. */
export function linesAt(lines, active) {
  return lines.filter(({ query, key }) => active.has(`q${query}`) || active.has(`k${key}`));
}

/**
 * A group of lines, in a field that is 100 wide.
 *
 * @param {Line[]} lines
 * @param {number} largest weight of the matrix, whose line is opaque.
 * @param {number} width of the field.
 * @returns {SVGGElement}
 */
export function drawLines(lines, largest, width = 100) {
  const group = makeSvg("g", { fill: "none", "stroke-linecap": "round" });
  for (const { query, key, weight } of lines) {
    const [from, to] = [(query + 0.5) * ROW, (key + 0.5) * ROW];
    const share = weight / (largest || 1);
    group.append(
      makeSvg("path", {
        d: `M0 ${from}C${0.45 * width} ${from} ${0.55 * width} ${to} ${width} ${to}`,
        "stroke-opacity": Math.max(0.04, share).toFixed(3),
        "stroke-width": (1 + 2.2 * share).toFixed(2),
        "vector-effect": "non-scaling-stroke",
        "data-query": query,
        "data-key": key,
        "data-weight": exact(weight),
      }),
    );
  }
  return group;
}
