// What the page says: how it stands, what went wrong, and what is pointed at.

import { hook } from "./dom.js";

export const NO_TEXT_MODULE = `This service has no text model yet. Whoever runs it can add one:

attention-service export sentence-transformers/all-MiniLM-L6-v2 --name minilm --modules MODULES

where MODULES is the folder that the service was started with. It finds the new model by itself; \
then reload this page. The tab “Tensors” works without a model.`;

/**
 * What is said of an error, and what would cure it by a click: a text that is too long can be cut.
 *
 * @param {Error} error
 * @param {import("./state.js").State} state
 * @param {{name: string, max_length: number}} [info] of the model.
 * @returns {[words: string, cure?: string]}
 */
export function refusal(error, { truncate }, info) {
  if (error.problem?.code !== "text_too_long" || truncate) return [error.message];
  const most = `${info.max_length.toLocaleString("en")} tokens`;
  return [`The text is longer than the ${most} that ${info.name} takes.`, `Show its first ${most}`];
}

/** The places where the page says something. */
export class Messages {
  #status = hook("status");
  #problem = hook("problem");
  #words = this.#problem.querySelector("p");
  #cure = hook("truncate");
  #readout = hook("readout");
  #later = 0;

  /** @param {string} words */
  tell(words) {
    clearTimeout(this.#later);
    this.#status.textContent = words;
    this.#status.classList.remove("busy");
  }

  /** Says that something is awaited, where it takes longer than an eye's blink. */
  wait(words) {
    clearTimeout(this.#later);
    this.#later = setTimeout(() => {
      this.#status.textContent = words;
      this.#status.classList.add("busy");
    }, 150);
  }

  /**
   * @param {string} words "" takes away what was said.
   * @param {string} [cure] what the button beside it does; none where there is nothing to do.
   */
  fail(words, cure = "") {
    this.#words.textContent = words;
    this.#cure.textContent = cure;
    this.#cure.hidden = cure === "";
    this.#problem.hidden = words === "";
    if (words) this.tell("");
  }

  /** @param {string} words what is pointed at. */
  read(words) {
    this.#readout.textContent = words;
  }
}
