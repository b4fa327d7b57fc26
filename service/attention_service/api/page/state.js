// What is looked at, and the link that says so. A fragment never leaves the browser, so no text
// that stands in it reaches a log.

export const VIEWS = ["head", "matrix", "model", "statistics", "rollout", "tensors"];
/** The value of the top-k slider that draws all. */
export const ALL = 32;

/**
 * @typedef {object} State
 * @property {string} view one of VIEWS.
 * @property {string} text
 * @property {string} pair the second text; "" for none.
 * @property {string} module its name; "" for the first.
 * @property {number|"mean"} layer
 * @property {number} head
 * @property {"none"|"mean"|"max"} aggregate how the chosen heads become one matrix.
 * @property {number[]} heads those that are aggregated; empty for all.
 * @property {"token"|"word"} unit
 * @property {boolean} truncate whether a text that is too long is cut rather than refused.
 * @property {number} topk keys of each row that are drawn; ALL for all.
 * @property {number} threshold least weight that is drawn, 0 to 1.
 * @property {string[]} held tokens whose lines stay: q3 is the fourth row, k0 the first column.
 * @property {string} sort column of the table, with a minus for falling order.
 * @property {""|"light"|"dark"} theme "" is the system's.
 */

/** @type {State} */
export const DEFAULTS = Object.freeze({
  view: "head",
  text: "",
  pair: "",
  module: "",
  layer: 0,
  head: 0,
  aggregate: "none",
  heads: Object.freeze([]),
  unit: "token",
  truncate: false,
  topk: ALL,
  threshold: 0,
  held: Object.freeze([]),
  sort: "layer",
  theme: "",
});

const index = (text) => (/^\d{1,4}$/.test(text) ? Number(text) : undefined);
const oneOf = (...words) => (text) => (words.includes(text) ? text : undefined);
const list = (read) => (text) => text.split(",").map(read).filter((part) => part !== undefined);
const within = (low, high) => (text) => {
  const number = Number(text);
  return number >= low && number <= high ? number : undefined;
};

/** Field → how its text is read; what cannot be read gives undefined, and so the default. */
const READERS = {
  view: oneOf(...VIEWS),
  text: (text) => text,
  pair: (text) => text,
  module: (text) => text,
  layer: (text) => (text === "mean" ? text : index(text)),
  head: index,
  aggregate: oneOf("none", "mean", "max"),
  heads: list(index),
  unit: oneOf("token", "word"),
  truncate: (text) => (text === "true" ? true : undefined),
  topk: within(1, ALL),
  threshold: within(0, 1),
  held: list((text) => (/^[qk]\d{1,5}$/.test(text) ? text : undefined)),
  sort: (text) => text,
  theme: oneOf("light", "dark"),
};

/**
 * @param {string} fragment with or without its `#`.
 * @returns {State}
 */
export function readState(fragment) {
  const given = new URLSearchParams(fragment.replace(/^#/, ""));
  const state = { ...DEFAULTS };
  for (const [name, read] of Object.entries(READERS)) {
    const value = given.has(name) ? read(given.get(name)) : undefined;
    if (value !== undefined) state[name] = value;
  }
  return state;
}

/**
 * @param {State} state
 * @returns {string} the fragment, with its `#`; what is as it is by default is left out.
 */
export function writeState(state) {
  const told = new URLSearchParams();
  for (const name of Object.keys(READERS)) {
    if (String(state[name]) !== String(DEFAULTS[name])) told.set(name, String(state[name]));
  }
  return `#${told}`;
}

/** What the answers depend on: two states with one such key are of one text and model. */
export function subject({ text, pair, module, unit, truncate }) {
  return JSON.stringify([text, pair, module, unit, truncate]);
}

/**
 * A state in a model's range; links and examples may be of a larger one, or of one that is not here.
 *
 * @param {State} state
 * @param {{name: string, num_layers: number, num_heads: number}} info of the model.
 * @returns {{state: State, changes: string[]}} and what is not as it was asked for, in words.
 */
export function fitted(state, { name, num_layers: layers, num_heads: count }) {
  const { module, layer, head, heads } = state;
  const made = {
    ...state,
    module: name,
    layer: layer === "mean" ? layer : Math.min(layer, layers - 1),
    head: Math.min(head, count - 1),
    heads: heads.filter((one) => one < count),
  };
  const changes = [];
  if (module && module !== name) changes.push(`There is no text module “${module}” here: this is ${name}.`);
  if (made.layer !== layer) changes.push(`${name} has no layer ${layer}: this is layer ${made.layer}.`);
  if (made.head !== head) changes.push(`${name} has no head ${head}: this is head ${made.head}.`);
  const lost = heads.filter((one) => one >= count);
  if (lost.length) changes.push(`${name} has no heads ${lost.join(", ")}: they are left out.`);
  return { state: made, changes };
}
