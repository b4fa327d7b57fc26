// Exports: what a view shows as a file.

import { make } from "./dom.js";

const TYPES = {
  png: "image/png",
  svg: "image/svg+xml",
  csv: "text/csv;charset=utf-8",
  json: "application/json",
};

/**
 * @param {"png"|"svg"|"csv"|"json"} type
 * @param {object} view
 * @param {import("./source.js").Source} source
 * @param {import("./state.js").State} state
 * @returns {Promise<void>} settled when the browser has the file.
 */
export async function exportAs(type, view, source, state) {
  const content = type === "json" ? await numbers(view, source, state) : await view[type]();
  const blob = content instanceof Blob ? content : new Blob([content], { type: TYPES[type] });
  save(blob, `attention-${state.view}.${type}`);
}

/** The request and, as the service wrote it, its answer: numbers keep all their digits. */
async function numbers(view, source, state) {
  const request = view.request(state, source);
  const response = await source.json(request);
  return `{"request": ${JSON.stringify(request)},\n"response": ${response}}\n`;
}

function save(blob, name) {
  const url = URL.createObjectURL(blob);
  const link = make("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10_000); // the browser has begun to read it by then
}
