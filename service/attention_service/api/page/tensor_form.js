// The options of the tensor tab: what may be set beside the tensors, and read back from a request.

import { make } from "./dom.js";

const NUMBERS = [
  ["scale", "Scale", "1/√D"],
  ["softcap", "Softcap", "none"],
  ["left_window_size", "Window before", "all keys"],
  ["right_window_size", "Window after", "all keys"],
  ["q_num_heads", "Query heads", "of the shape"],
  ["kv_num_heads", "Key heads", "of the shape"],
];
const FLAGS = [
  ["output", "Output", true],
  ["weights", "Weights", true],
  ["lse", "Log-sum-exp", true],
  ["entropy", "Entropy", true],
];
const SCORES = [
  ["", "none"],
  ["raw", "scale·QKᵀ"],
  ["softcap", "after the softcap"],
  ["masked", "after the mask"],
];

/** The form with all options; those that it has no control for pass through a request unchanged. */
export class Options {
  #controls = new Map();

  constructor() {
    const options = make("fieldset", {}, make("legend", {}, "Options"));
    options.append(this.#flag("is_causal", "Causal: no query sees later keys", false));
    options.append(...NUMBERS.map((entry) => this.#number(...entry)));
    const flags = FLAGS.map((entry) => this.#flag(...entry));
    const wanted = make("fieldset", {}, make("legend", {}, "Return"), ...flags);
    wanted.append(this.#scores(), this.#number("top_k", "Largest of each row", "all keys"));
    this.element = make("div", { class: "tensor-options" }, options, wanted);
  }

  #labelled(name, text, control) {
    control.dataset.testid = `tensor-options-${name}`;
    this.#controls.set(name, control);
    const kind = control.type === "checkbox" ? "flag" : "field";
    return make("label", { class: kind }, make("span", {}, text), control);
  }

  #flag(name, text, checked) {
    return this.#labelled(name, text, make("input", { type: "checkbox", checked }));
  }

  #number(name, text, placeholder) {
    return this.#labelled(name, text, make("input", { type: "number", placeholder, step: "any" }));
  }

  #scores() {
    const choices = SCORES.map(([value, text]) => make("option", { value }, text));
    return this.#labelled("scores", "Scores", make("select", {}, ...choices));
  }

  /**
   * Sets the controls that a request has a value for; the others stay as they are.
   *
   * @param {object} request as it was pasted.
   */
  read(request) {
    const wanted = Object(request.return);
    const given = { ...request, ...wanted, ...Object(wanted.weights) };
    if ("weights" in wanted) given.weights = Boolean(wanted.weights);
    if (wanted.scores === false) given.scores = "";
    for (const [name, control] of this.#controls) {
      if (!(name in given)) continue;
      if (control.type === "checkbox") control.checked = given[name] === true;
      else control.value = given[name] ?? "";
    }
  }

  /**
   * A request with the options as they are set now.
   *
   * @param {object} request as it was pasted.
   * @returns {object} a copy.
   * @throws {Error} where a control holds no number.
   */
  write(request) {
    const made = { ...request, is_causal: this.#controls.get("is_causal").checked };
    for (const [name] of NUMBERS) this.#writeNumber(made, name);
    const { weights, ...others } = Object(request.return);
    const selection = { ...Object(weights) };
    this.#writeNumber(selection, "top_k");
    made.return = { ...others, scores: this.#controls.get("scores").value || false };
    for (const [name] of FLAGS) made.return[name] = this.#controls.get(name).checked;
    if (made.return.weights && Object.keys(selection).length) made.return.weights = selection;
    return made;
  }

  #writeNumber(fields, name) {
    const control = this.#controls.get(name);
    if (control.validity.badInput) throw new Error(`${name} is no number; leave it empty for the default.`);
    delete fields[name];
    if (control.value !== "") fields[name] = Number(control.value);
  }
}
