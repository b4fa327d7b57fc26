// What is asked of POST /v1/text/attention, for each thing that can be looked at.

/** @typedef {import("./state.js").State} State */

const NOTHING = { output: false, weights: false };

/** Text, pair, module, unit and whether it may be cut, which every request has. */
function base({ text, pair, module, unit, truncate }) {
  const body = { text, module, unit };
  if (pair) body.text_pair = pair;
  if (truncate) body.truncate = true;
  return body;
}

/** Layers that one matrix is made of. */
function layersOf({ layer }) {
  return layer === "mean" ? "all" : [layer];
}

function headsOf({ aggregate, head, heads }) {
  if (aggregate === "none") return [head];
  return heads.length ? heads : "all";
}

/** The one matrix of a state, [N,1,U,U]; N layers, whose mean is shown. @param {State} state */
export function matrixRequest(state) {
  const weights = state.aggregate === "none" ? true : { reduce: state.aggregate };
  return {
    ...base(state),
    layers: layersOf(state),
    heads: headsOf(state),
    return: { output: false, weights },
  };
}

/** As little as tells the units of a text: one row of one layer, [1,1,1,U]. @param {State} state */
export function unitsRequest(state) {
  const weights = { queries: [0], reduce: "mean" };
  return { ...base(state), layers: [0], return: { output: false, weights } };
}

/** All heads of layers, [N,H,U,U], or of each row only the `topK` largest. */
export function layersRequest(state, layers, topK = null) {
  const weights = topK === null ? true : { top_k: topK };
  return { ...base(state), layers, return: { output: false, weights } };
}

/** Numbers and classes of all heads, [N,H] each. @param {State} state */
export function statisticsRequest(state) {
  return { ...base(state), return: { ...NOTHING, statistics: true, classes: true } };
}

/** Attention rollout up to a layer, [1,U,U]. @param {State} state @param {number} layer */
export function rolloutRequest(state, layer) {
  const heads = state.aggregate === "none" || !state.heads.length ? "all" : state.heads;
  return { ...base(state), layers: [layer], heads, return: { ...NOTHING, rollout: true } };
}
