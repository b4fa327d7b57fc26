// The choices beside the views and above them: the model's layers and heads, and what of them is drawn.

import { hook, make } from "./dom.js";
import { ALL } from "./state.js";

/** Field of the state → how its control's text is read. */
const CHOICES = {
  module: String,
  layer: (text) => (text === "mean" ? text : Number(text)),
  head: Number,
  aggregate: String,
  unit: String,
};
const SLIDERS = ["topk", "threshold"];

/**
 * Wires the controls.
 *
 * @param {object} page
 * @param {(change: object, options?: {replace: boolean}) => void} page.change
 * @param {(name: "layer"|"head", by: number) => void} page.step
 * @returns {{fill: (modules: object[]) => void, show: (state: object, info: object) => void}}
 */
export function createControls({ change, step }) {
  const controls = Object.fromEntries([...Object.keys(CHOICES), ...SLIDERS].map((name) => [name, hook(name)]));
  const heads = hook("heads");
  const steps = [...document.querySelectorAll("[data-step]")];
  let state = null;
  let info = null;

  for (const [name, read] of Object.entries(CHOICES)) {
    controls[name].addEventListener("change", () => change({ [name]: read(controls[name].value) }));
  }
  for (const button of steps) {
    button.addEventListener("click", () => step(button.dataset.step, Number(button.dataset.by)));
  }
  for (const name of SLIDERS) {
    controls[name].addEventListener("input", () => {
      tell(name);
      change({ [name]: Number(controls[name].value) }, { replace: true });
    });
  }
  heads.addEventListener("click", (event) => {
    const chip = event.target.closest("[data-chip]");
    if (!chip) return;
    const head = Number(chip.dataset.chip);
    const all = Array.from({ length: info.num_heads }, (_, index) => index);
    const chosen = state.heads.length ? state.heads : all;
    const next = chosen.includes(head) ? chosen.filter((other) => other !== head) : [...chosen, head];
    next.sort((a, b) => a - b);
    change({ heads: next.length === all.length ? [] : next.length ? next : [head] });
  });

  function tell(name) {
    const control = controls[name];
    const value = Number(control.value);
    const words = name === "topk" ? (value === ALL ? "all" : `${value}`) : value === 0 ? "any" : value.toFixed(3);
    control.closest("label").querySelector(".value").textContent = words;
    control.setAttribute("aria-valuetext", words);
  }

  function options(name, entries) {
    const select = controls[name];
    const texts = JSON.stringify(entries);
    if (select.dataset.entries === texts) return;
    select.dataset.entries = texts;
    select.replaceChildren(...entries.map(([value, text]) => make("option", { value }, text)));
  }

  function showChips() {
    const chips = heads.querySelector(".chips");
    if (chips.children.length !== info.num_heads) {
      const made = Array.from({ length: info.num_heads }, (_, head) =>
        make("button", { type: "button", class: "chip", dataChip: head, dataTestid: `heads-${head}` }, `${head}`),
      );
      chips.replaceChildren(...made);
    }
    for (const chip of chips.children) {
      const isOn = !state.heads.length || state.heads.includes(Number(chip.dataset.chip));
      chip.setAttribute("aria-pressed", String(isOn));
      chip.setAttribute("aria-label", `Head ${chip.dataset.chip}`);
    }
  }

  return {
    fill(modules) {
      options("module", modules.map(({ name }) => [name, name]));
    },
    show(shown, of) {
      [state, info] = [shown, of];
      const layers = Array.from({ length: info.num_layers }, (_, layer) => [String(layer), `${layer}`]);
      options("layer", [...layers, ["mean", "mean"]]);
      options("head", Array.from({ length: info.num_heads }, (_, head) => [String(head), `${head}`]));
      for (const name of Object.keys(controls)) {
        const value = String(state[name]);
        if (controls[name].value !== value) controls[name].value = value;
      }
      SLIDERS.forEach(tell);
      const ofHead = steps.filter((button) => button.dataset.step === "head");
      for (const one of [controls.head, ...ofHead]) one.disabled = state.aggregate !== "none";
      heads.hidden = state.aggregate === "none";
      showChips();
    },
  };
}
