// The numbers of each head as a table that can be sorted by each of them.

import { make } from "./dom.js";
import { quoted } from "./matrix_files.js";
import { exact, readable } from "./numbers.js";
import { statisticsRequest } from "./requests.js";

export const lede = () =>
  "One line for each head: means over its rows, and what kind of head it was in this text, " +
  "where it clearly was one.";

/** Name → what it is, for the heading's tooltip. */
const NUMBERS = {
  entropy: "How widely a row's attention is spread, in nats",
  maximum: "The largest weight of a row",
  distance: "How far away, in tokens or words, a row looks",
  first: "Weight of the first key",
  separator: "Weight of special tokens but the first",
  itself: "Weight of the row's own key",
};
const COLUMNS = ["layer", "head", ...Object.keys(NUMBERS), "class"];

/**
 * @param {HTMLElement} stage
 * @param {{open: (layer: number, head: number) => void, sort: (by: string) => void}} page
 * @returns {object} a view, as views.js has them.
 */
export function createView(stage, page) {
  let rows = [];
  const body = make("tbody");
  const heads = COLUMNS.map((name) => {
    const button = make("button", { type: "button", title: NUMBERS[name] ?? null }, name);
    const cell = make("th", { scope: "col", dataColumn: name }, button);
    button.addEventListener("click", () => page.sort(nextSort(name, cell.getAttribute("aria-sort"))));
    return cell;
  });
  const caption = make("caption", {}, "Numbers of each head");
  const opens = make("td", { class: "open" });
  const head = make("thead", {}, make("tr", {}, ...heads, opens));
  const table = make("table", { class: "numbers", dataTestid: "statistics-table" }, caption, head, body);
  stage.replaceChildren(make("div", { class: "scroll", tabindex: 0, role: "region", ariaLabel: "Numbers of each head" }, table));

  return {
    files: ["csv", "json"],
    load: (source) => source.statistics(),
    show(data, _, { sort }) {
      rows = sorted(rowsOf(data), sort);
      for (const cell of heads) cell.setAttribute("aria-sort", orderOf(cell.dataset.column, sort));
      const most = Object.fromEntries(
        Object.keys(NUMBERS).map((name) => [name, Math.max(...rows.map((row) => row[name]))]),
      );
      body.replaceChildren(...rows.map((row) => line(row, most, page)));
    },
    request: statisticsRequest,
    csv: () => [COLUMNS.join(","), ...rows.map(csvLine), ""].join("\r\n"),
  };
}

function rowsOf({ tensors, labels }) {
  return labels.flatMap((heads, layer) =>
    heads.map((name, head) => {
      const at = layer * heads.length + head;
      const numbers = Object.keys(NUMBERS).map((key) => [key, tensors.get(`statistics.${key}`).data[at]]);
      return { layer, head, ...Object.fromEntries(numbers), class: name ?? "" };
    }),
  );
}

/** By one column, then by layer and head. @param {string} sort with a minus for falling order. */
function sorted(rows, sort) {
  const by = sort.replace("-", "");
  if (!COLUMNS.includes(by)) return rows;
  const sign = sort.startsWith("-") ? -1 : 1;
  return [...rows].sort((a, b) => {
    if (a[by] !== b[by]) return sign * (a[by] < b[by] ? -1 : 1);
    return a.layer - b.layer || a.head - b.head;
  });
}

function orderOf(column, sort) {
  if (column !== sort.replace("-", "")) return "none";
  return sort.startsWith("-") ? "descending" : "ascending";
}

/** Numbers are sorted from the largest first, places and names from the first. */
function nextSort(column, order) {
  if (order === "none") return column in NUMBERS ? `-${column}` : column;
  return order === "ascending" ? `-${column}` : column;
}

function line(row, most, page) {
  const open = make("button", { type: "button", dataTestid: `open-${row.layer}-${row.head}` }, "Lines");
  open.setAttribute("aria-label", `Show lines of layer ${row.layer}, head ${row.head}`);
  open.addEventListener("click", () => page.open(row.layer, row.head));
  const numbers = Object.keys(NUMBERS).map((name) => {
    const cell = make("td", { class: "number", dataValue: exact(row[name]) }, readable(row[name]));
    cell.style.setProperty("--share", `${(100 * row[name]) / (most[name] || 1)}%`);
    return cell;
  });
  const places = [make("td", {}, String(row.layer)), make("th", { scope: "row" }, String(row.head))];
  const ends = [make("td", { class: "kind" }, row.class), make("td", { class: "open" }, open)];
  return make("tr", {}, ...places, ...numbers, ...ends);
}

function csvLine(row) {
  return COLUMNS.map((name) => (name in NUMBERS ? exact(row[name]) : quoted(String(row[name])))).join(",");
}
