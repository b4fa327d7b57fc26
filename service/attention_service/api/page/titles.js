// What a matrix is, in words.

/**
 * @param {import("./state.js").State} state
 * @param {import("./source.js").Source} source
 * @returns {string}
 */
export function titleOf(state, source) {
  return `Attention of ${source.info.name}, ${headWords(state)}, ${layerWords(state)}`;
}

/** @param {import("./state.js").State} state */
export function layerWords({ layer }) {
  return layer === "mean" ? "mean of all layers" : `layer ${layer}`;
}

/** @param {import("./state.js").State} state */
export function headWords({ aggregate, head, heads }) {
  if (aggregate === "none") return `head ${head}`;
  const which = heads.length ? `heads ${heads.join(", ")}` : "all heads";
  return `${aggregate === "mean" ? "mean" : "largest"} of ${which}`;
}

/** How much is shown, and of what. */
export function summaryOf(state, source) {
  const count = `${source.units.length} ${state.unit === "word" ? "words" : "tokens"}`;
  const parts = [count, source.info.name];
  if (state.view === "head" || state.view === "matrix") parts.push(layerWords(state), headWords(state));
  return parts.join(" · ");
}
