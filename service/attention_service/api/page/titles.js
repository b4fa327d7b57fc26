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
  const { units, share, info } = source;
  const parts = [`${units.length} ${state.unit}s`, info.name];
  if (share < 1) parts[0] = `first ${parts[0]}, ${percent(share)} of the text`;
  if (state.view === "head" || state.view === "matrix") parts.push(layerWords(state), headWords(state));
  if (state.view === "rollout") parts.push(`layers 0 to ${lastOf(state, source)}`);
  return parts.join(" · ");
}

function percent(share) {
  const rounded = Math.round(100 * share);
  if (rounded === 0) return "less than 1%";
  return `${Math.min(99, rounded)}%`; // something is missing
}

/** The layer that a rollout goes up to; that of all layers is that up to the last. */
export function lastOf({ layer }, { info }) {
  return layer === "mean" ? info.num_layers - 1 : layer;
}
