// Keys of the views: the layer and head before and after. They count inside the view only, so that
// no single key does something that nobody asked for.

const STEPS = { "[": ["head", -1], "]": ["head", 1], "{": ["layer", -1], "}": ["layer", 1] };

/**
 * @param {HTMLElement} viewer
 * @param {import("./explorer.js").Explorer} explorer
 */
export function listenToKeys(viewer, explorer) {
  viewer.addEventListener("keydown", (event) => {
    const isTyped = event.target.closest("input, textarea, select");
    if (isTyped || event.ctrlKey || event.metaKey || !(event.key in STEPS)) return;
    event.preventDefault();
    explorer.step(...STEPS[event.key]);
  });
}
