// The tensor tab: attention over tensors that somebody pastes as JSON or drops as files.

import { make } from "./dom.js";
import { send } from "./tensor_call.js";
import { TENSOR_FIELDS, parseRequest, readFile } from "./tensor_files.js";
import { Options } from "./tensor_form.js";
import { AnswerView } from "./tensor_answer.js";

const EXAMPLE = `{
  "query": [[1, 0, 0.5], [0, 1, 0.5], [1, 1, 0]],
  "key":   [[1, 0, 0.5], [0, 1, 0.5], [1, 1, 0], [0, 0, 2]],
  "value": [[1, 2], [3, 4], [5, 6], [7, 8]],
  "attn_mask": [[true, true, true, false], [true, true, true, true], [true, true, true, true]]
}`;

/**
 * Builds the tab, with a worked example that is sent at once.
 *
 * @param {HTMLElement} section an empty tab panel.
 * @param {{createMatrix: Function, call: Function}} page of matrix.js and api.js.
 * @returns {Promise<void>} settled when the example was answered, or its problem told.
 */
export async function mountTensorTab(section, { createMatrix, call }) {
  if (!document.querySelector('link[href="page/tensors.css"]')) {
    document.head.append(make("link", { rel: "stylesheet", href: "page/tensors.css" }));
  }
  const tab = new TensorTab(createMatrix, call);
  section.replaceChildren(tab.element);
  await tab.run();
}

class TensorTab {
  /** Tensors of files: {name, field, tensor}. */
  #brought = [];
  #call;
  #options = new Options();
  #view;

  constructor(createMatrix, call) {
    this.#call = call;
    this.#view = new AnswerView(createMatrix);
    this.input = make("textarea", { dataTestid: "tensor-input", rows: 6, spellcheck: "false" }, EXAMPLE);
    this.input.addEventListener("change", () => this.#attempt(() => this.#readInput()));
    const accept = ".json,.npy,.safetensors";
    this.file = make("input", { type: "file", dataTestid: "tensor-file", multiple: true, accept });
    this.file.addEventListener("change", () => this.#take([...this.file.files]));
    this.list = make("ul", { class: "tensor-brought", dataTestid: "tensor-brought" });
    this.runs = make("button", { type: "submit", class: "primary", dataTestid: "tensor-run" }, "Compute attention");
    this.status = make("p", { dataTestid: "tensor-status", role: "status" });
    this.element = make("div", { class: "tensor-tab" }, this.#form(), this.#view.element);
    this.#acceptDrops();
  }

  #form() {
    const sentence =
      "Attention over tensors of your own: each query's weights over the keys, softmax(scale·QKᵀ + mask), " +
      "and what it gathers of the values. Paste numbers, or drop a .json, .npy or .safetensors file anywhere here.";
    const form = make("form", { class: "tensor-form", novalidate: true }, make("p", { class: "explain" }, sentence));
    form.append(
      make("label", { class: "field" }, make("span", {}, "Request as JSON, or only query, key and value"), this.input),
      make("label", { class: "field" }, make("span", {}, "Files"), this.file),
      this.list,
      this.#options.element,
      make("div", { class: "tensor-send" }, this.runs, this.status),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.run();
    });
    return form;
  }

  #acceptDrops() {
    const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
    this.element.addEventListener("dragover", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      this.element.classList.add("dropping");
    });
    this.element.addEventListener("dragleave", (event) => {
      if (!this.element.contains(event.relatedTarget)) this.element.classList.remove("dropping");
    });
    this.element.addEventListener("drop", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      this.element.classList.remove("dropping");
      this.#take([...event.dataTransfer.files]);
    });
  }

  /** Sends what stands in the form and shows the answer. */
  async run() {
    this.runs.disabled = true;
    this.#tell("Computing …");
    await this.#attempt(async () => {
      const unnamed = this.#brought.find(({ field }) => !field);
      if (unnamed) throw new Error(`Say which field ${unnamed.name} is, or remove it.`);
      const tensors = new Map(this.#brought.map(({ field, tensor }) => [field, tensor]));
      const request = this.#options.write(parseRequest(this.input.value));
      const missing = ["query", "key", "value"].filter((field) => !(field in request) && !tensors.has(field));
      if (missing.length) throw new Error(`There is no ${missing.join(" and no ")} yet: paste or drop it.`);
      this.#view.show(await send(request, tensors, this.#call));
      this.#tell("Computed.");
    });
    this.runs.disabled = false;
  }

  /** Does something that may fail on what a person brought; the fault is told in words. */
  async #attempt(action) {
    try {
      await action();
    } catch (error) {
      this.#tell(error.message, true);
    }
  }

  #tell(text, isFault = false) {
    this.status.textContent = text;
    this.status.classList.toggle("fault", isFault);
    if (isFault) this.status.scrollIntoView({ block: "nearest" });
  }

  #readInput() {
    this.#options.read(parseRequest(this.input.value));
    this.#tell("");
  }

  /** @param {File[]} files */
  #take(files) {
    return this.#attempt(async () => {
      for (const file of files) {
        const { tensors, fields } = await readFile(file);
        // The example's numbers go with no others.
        if (this.input.value === EXAMPLE) this.input.value = "";
        if (Object.keys(fields).length) this.input.value = JSON.stringify(fields, null, 1);
        this.#options.read(fields);
        for (const one of tensors) this.#place(one);
      }
      this.file.value = "";
      this.#drawList();
      this.#tell(`Read ${files.map(({ name }) => name).join(", ")}.`);
    });
  }

  /** A field has one tensor: the last that was brought for it. */
  #place(one) {
    this.#brought = this.#brought.filter(({ field }) => !one.field || field !== one.field);
    this.#brought.push(one);
  }

  #drawList() {
    this.list.replaceChildren(...this.#brought.map((one) => this.#listItem(one)));
  }

  #listItem(one) {
    const { name, tensor } = one;
    const fields = ["", ...TENSOR_FIELDS].map((field) => make("option", { value: field }, field || "which field?"));
    const select = make("select", { dataTestid: "tensor-field", ariaLabel: `Field that ${name} is` }, ...fields);
    select.value = one.field;
    select.addEventListener("change", () => {
      this.#brought = this.#brought.filter((other) => other !== one && (!select.value || other.field !== select.value));
      one.field = select.value;
      this.#brought.push(one);
      this.#drawList();
    });
    const remove = make("button", { type: "button", class: "quiet", ariaLabel: `Remove ${name}` }, "Remove");
    remove.addEventListener("click", () => {
      this.#brought = this.#brought.filter((other) => other !== one);
      this.#drawList();
      this.file.focus();
    });
    const told = make("span", { dir: "auto" }, `${name}: ${tensor.dtype} [${tensor.shape.join(", ")}]`);
    return make("li", {}, told, select, remove);
  }
}
