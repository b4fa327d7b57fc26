// The examples to click, and what the one that is shown is an example of.

import { hook, make } from "./dom.js";
import { EXAMPLES, exampleOf } from "./examples.js";

/**
 * @param {(example: import("./examples.js").Example) => void} open
 * @returns {(state: import("./state.js").State) => void} shows what to look for, if it is of an example.
 */
export function createExampleList(open) {
  const says = hook("shows");
  const buttons = EXAMPLES.map((example, index) => {
    const attributes = { type: "button", class: "chip", title: example.shows, dataTestid: `example-${index}` };
    const button = make("button", attributes, example.name);
    button.addEventListener("click", () => open(example));
    return button;
  });
  document.querySelector(".examples ul").append(...buttons.map((button) => make("li", {}, button)));
  return (state) => {
    const shown = exampleOf(state);
    buttons.forEach((button, index) => button.setAttribute("aria-pressed", String(EXAMPLES[index] === shown)));
    says.textContent = shown?.shows ?? "";
    says.hidden = !shown;
  };
}
