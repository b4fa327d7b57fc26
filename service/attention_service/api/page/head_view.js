// The head view: rows on the left, columns on the right, and a line for each weight between them.

import { make, makeSvg, rove } from "./dom.js";
import { drawLines, linesAt, linesOf, ROW, strongest } from "./head_lines.js";
import { headPng, headSvg } from "./head_files.js";
import { matrixRequest } from "./requests.js";
import { matrixCsv } from "./matrix_files.js";
import { readable } from "./numbers.js";
import { titleOf } from "./titles.js";
import { named } from "./units.js";

/** Most tokens that the read-out names. */
const NAMED = 5;

export const lede = (unit) =>
  `Each line goes from a ${unit} to one that it attends to; the more weight, the heavier the line. ` +
  `Point at a ${unit} to see its lines alone, click to hold them.`;

/**
 * @param {HTMLElement} stage
 * @param {{read: (words: string) => void, hold: (held: string[]) => void}} page
 * @returns {object} a view, as views.js has them.
 */
export function createView(stage, page) {
  const own = { source: null, state: null, values: null, lines: [], pointed: null };
  const queries = column("query", "From");
  const keys = column("key", "To");
  const field = makeSvg("svg", { class: "head-lines", preserveAspectRatio: "none", "aria-hidden": "true" });
  const note = make("p", { class: "hint" });
  const letGo = make("button", { type: "button", class: "quiet", dataTestid: "let-go" }, "Let all tokens go");
  letGo.addEventListener("click", () => page.hold([]));
  const box = make("div", { class: "head-view", dataTestid: "head-view" }, queries.box, field, keys.box);
  stage.replaceChildren(box, note, letGo);
  let all = makeSvg("g");

  for (const type of ["pointerover", "focusin"]) box.addEventListener(type, (event) => point(event.target));
  box.addEventListener("pointerleave", () => point(null));
  box.addEventListener("focusout", () => point(null));
  box.addEventListener("click", (event) => toggle(event.target.closest("[data-side]")));
  box.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && own.state.held.length) page.hold([]);
  });
  rove(box, "[data-side]", (item, key) => {
    const side = item.dataset.side === "query" ? queries : keys;
    const at = Number(item.dataset.index);
    const last = side.list.children.length - 1;
    const moves = { ArrowUp: at - 1, ArrowDown: at + 1, Home: 0, End: last };
    if (key === "ArrowLeft") return buttonAt(queries, at);
    if (key === "ArrowRight") return buttonAt(keys, at);
    return key in moves ? buttonAt(side, moves[key]) : null;
  });

  function point(target) {
    const token = target?.closest?.("[data-side]");
    const pointed = token ? nameOf(token) : null;
    if (pointed === own.pointed) return;
    own.pointed = pointed;
    focusLines();
  }

  function toggle(token) {
    if (!token) return;
    const name = nameOf(token);
    const { held } = own.state;
    page.hold(held.includes(name) ? held.filter((other) => other !== name) : [...held, name]);
  }

  /** All lines, or those of the tokens that are held or pointed at. */
  function focusLines() {
    const active = new Set(own.state.held);
    if (own.pointed) active.add(own.pointed);
    const lines = linesAt(own.lines, active);
    field.replaceChildren(active.size ? drawLines(lines, own.largest) : all);
    shade(queries, active, lines, "query");
    shade(keys, active, lines, "key");
    const said = own.pointed ?? own.state.held.at(-1);
    page.read(said ? sentence(said) : "");
    note.textContent = own.lines.length > strongest(own.lines).length && !active.size
      ? `The ${strongest(own.lines).length} strongest of ${own.lines.length} lines are drawn; point at a token to see all of its own.`
      : "";
    letGo.hidden = own.state.held.length === 0;
  }

  /** Shades the tokens at the far ends of lines by the strongest that comes to them. */
  function shade(side, active, lines, end) {
    const strength = new Map();
    for (const line of lines) {
      const isFar = active.has(end === "key" ? `q${line.query}` : `k${line.key}`);
      if (isFar) strength.set(line[end], Math.max(strength.get(line[end]) ?? 0, line.weight));
    }
    for (const { firstChild: token } of side.list.children) {
      const index = Number(token.dataset.index);
      const share = (strength.get(index) ?? 0) / (own.largest || 1);
      token.style.setProperty("--share", share.toFixed(3));
      const name = nameOf(token);
      token.classList.toggle("active", active.has(name));
      token.setAttribute("aria-pressed", String(own.state.held.includes(name)));
    }
  }

  function sentence(name) {
    const { units } = own.source;
    const isQuery = name.startsWith("q");
    const index = Number(name.slice(1));
    if (index >= units.length) return "";
    const weights = units.map((unit, other) => {
      const cell = isQuery ? index * units.length + other : other * units.length + index;
      return { other, weight: own.values[cell] };
    });
    weights.sort((a, b) => b.weight - a.weight || a.other - b.other);
    const told = weights.slice(0, NAMED).map(({ other, weight }) => `${named(units[other], other)} ${readable(weight)}`);
    const verb = isQuery ? "attends to" : "is attended to by";
    return `${named(units[index], index)} ${verb} ${told.join(", ")}`;
  }

  return {
    files: ["png", "svg", "csv", "json"],
    load: (source, state) => source.matrix(state),
    show(values, source, state) {
      const isOther = own.source !== source;
      const count = source.units.length;
      Object.assign(own, { source, state, values, pointed: null });
      own.largest = values.reduce((most, value) => Math.max(most, value), 0);
      own.lines = linesOf(values, count, state);
      if (isOther) {
        fill(queries, source.units);
        fill(keys, source.units);
        field.setAttribute("viewBox", `0 0 100 ${count * ROW}`);
        field.setAttribute("height", count * ROW);
      }
      all = drawLines(strongest(own.lines), own.largest);
      focusLines();
    },
    request: matrixRequest,
    csv: () => matrixCsv(shown()),
    svg: () => headSvg(drawn()),
    png: () => headPng(drawn()),
  };

  function shown() {
    const names = own.source.units.map(({ label }) => label);
    return { rows: names, columns: names, values: own.values };
  }

  function drawn() {
    const active = new Set(own.state.held);
    const lines = active.size ? linesAt(own.lines, active) : strongest(own.lines);
    const title = titleOf(own.state, own.source);
    return { units: own.source.units, lines, largest: own.largest, title, stage };
  }
}

function nameOf(token) {
  return `${token.dataset.side === "query" ? "q" : "k"}${token.dataset.index}`;
}

function column(side, name) {
  const list = make("ol", { class: `tokens ${side}`, ariaLabel: `${name}: ${side} tokens` });
  return { side, list, box: make("div", { class: "side-of-lines" }, make("h3", {}, name), list) };
}

function buttonAt({ list }, index) {
  return list.children[index]?.firstChild;
}

function fill({ side, list }, units) {
  const items = units.map((unit, index) => {
    const token = make(
      "button",
      {
        type: "button",
        class: `token${unit.special ? " special" : ""}${unit.segment === 1 ? " second" : ""}`,
        dir: "auto",
        dataSide: side,
        dataIndex: index,
        ariaPressed: "false",
        tabindex: index === 0 && side === "query" ? 0 : -1,
        title: `${index}: ${unit.raw}`,
      },
      unit.label,
    );
    return make("li", {}, token);
  });
  list.replaceChildren(...items);
}
